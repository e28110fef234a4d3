"""The file with the parameters of the model in production."""

from dataclasses import asdict, fields
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainer.parameters import Parameters
from trainer.production import PARAMETERS, ParametersError, load_parameters


def test_the_file_names_every_parameter_once_with_a_comment() -> None:
    lines = PARAMETERS.read_text().splitlines()
    keys = [line.partition(":")[0] for line in lines if line and not line.startswith("#")]
    assert keys == [field.name for field in fields(Parameters)]
    for line, above in zip(lines[1:], lines, strict=False):
        if ":" in line and not line.startswith("#"):
            assert above, f"nothing says what {line} is"
    assert load_parameters() == Parameters(**yaml.safe_load(PARAMETERS.read_text()))


@given(parameters=st.builds(Parameters), named=st.sets(st.sampled_from(fields(Parameters))))
def test_what_is_named_counts_and_the_rest_has_its_default(
    tmp_path_factory: pytest.TempPathFactory, parameters: Parameters, named: set[object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    names = [field.name for field in fields(Parameters) if field in named]
    values = {name: value for name, value in asdict(parameters).items() if name in names}
    path.write_text(yaml.safe_dump(values))
    assert load_parameters(path) == Parameters(**values)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch: 3", "epoch: unknown parameter; did you mean epochs?"),
        ("zzz: 3", "zzz: unknown parameter; known are ngrams, "),
        ("1: 3", "1: unknown parameter"),
        ("epochs: 0.5", "epochs: Input should be a valid integer, not 0.5"),
        ("epochs: '3'", "epochs: Input should be a valid integer, not '3'"),
        ("epochs: true", "epochs: Input should be a valid integer, not True"),
        ("epochs:", "epochs: Input should be a valid integer, not None"),
        ("learning_rate: 1e-3", "learning_rate: .* number, not '1e-3' .*: write 0.001"),
        ("learning_rate: .nan", "learning_rate: Input should be a finite number"),
        ("[]", "not a mapping"),
        ("epochs: [", "can't be read"),
        ("epochs: \udcff", "can't be read"),
    ],
)
def test_a_mistake_is_named_with_its_key(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ParametersError, match=f"params.yaml: {words}"):
        load_parameters(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParametersError, match=r"missing\.yaml: can't be read"):
        load_parameters(tmp_path / "missing.yaml")


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("# nothing\n")
    assert load_parameters(path) == Parameters()


def test_a_whole_number_may_stand_for_a_float(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("learning_rate: 1")
    assert type(load_parameters(path).learning_rate) is float
