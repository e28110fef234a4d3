"""One logged model with two flavors of MLflow: the torch module, and text in, score out.

``mlflow.pytorch.log_model`` can't do this: for a module with two tensor inputs it
writes no python_function flavor. `mlflow.models.Model.log` takes this module as a
flavor of its own and calls `save_model`.
"""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
import torch
from mlflow.models import Model, ModelSignature
from mlflow.models.model import MLMODEL_FILE_NAME
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

from trainer.model import BagLinear

SERVING_FOLDER = "serving"

# What the python_function flavor imports; it needs no torch.
_PYFUNC_SOURCES = (
    "functions/__init__.py",
    "functions/predict/__init__.py",
    "functions/predict/bundle.py",
    "functions/predict/scorer.py",
    "functions/predict/tokenizer.py",
    "trainer/__init__.py",
    "trainer/pyfunc.py",
)
_REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "msgspec", "safetensors")

_TENSORS = ModelSignature(
    inputs=Schema(
        [
            TensorSpec(np.dtype("int64"), (-1,), "indices"),
            TensorSpec(np.dtype("int64"), (-1,), "offsets"),
        ]
    ),
    outputs=Schema([TensorSpec(np.dtype("float32"), (-1,), "score")]),
)
_TEXTS = ModelSignature(
    inputs=Schema([ColSpec(DataType.string, "text")]),
    outputs=Schema([ColSpec(DataType.double)]),
)


def save_model(
    *, path: str, mlflow_model: Model, model: BagLinear, bundle: Mapping[str, bytes]
) -> None:
    """Write the model to the folder `path`; called by `mlflow.models.Model.log`.

    Args:
        path: folder to make.
        mlflow_model: the model's description, completed here.
        model: the trained module; exported as ``pt2``, which holds no pickle.
        bundle: files of the serving bundle, name -> content, for ``serving/``.
    """
    root = Path(path)
    requirements = [_requirement(name) for name in _REQUIREMENTS]
    with tempfile.TemporaryDirectory() as staging:
        _copy_sources(Path(staging))
        mlflow.pytorch.save_model(
            model.eval(),
            path,
            mlflow_model=mlflow_model,
            serialization_format="pt2",
            signature=_TENSORS,
            # Three documents: an example of one would fix the batch at one.
            input_example=(torch.tensor([0, 0, 0, 0, 0]), torch.tensor([0, 2, 3])),
            code_paths=[str(folder) for folder in sorted(Path(staging).iterdir())],
            pip_requirements=requirements,
        )
    serving = root / SERVING_FOLDER
    serving.mkdir()
    for name, content in bundle.items():
        (serving / name).write_bytes(content)
    mlflow.pyfunc.add_to_model(
        mlflow_model,
        loader_module="trainer.pyfunc",
        data=SERVING_FOLDER,
        code="code",
        python_env="python_env.yaml",
        conda_env="conda.yaml",
    )
    mlflow_model.signature = _TEXTS
    mlflow_model.save(str(root / MLMODEL_FILE_NAME))


def _copy_sources(target: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    for name in _PYFUNC_SOURCES:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target / name)


def _requirement(name: str) -> str:
    # torch's local version ("+cpu") is not one that an index knows.
    return f"{name}=={importlib.metadata.version(name).split('+')[0]}"
