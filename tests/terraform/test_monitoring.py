"""Monitoring: what the services log is what the metrics and alerts read."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
from google.cloud import monitoring_v3

from functions.logs import JsonFormatter
from functions.predict.app import create_app
from functions.predict.bundle import read_bundle
from functions.promote.app import create_app as create_promote
from functions.promote.bundles import Bundles
from functions.promote.cloud_run import CloudRun
from functions.promote.gates import Gates
from functions.promote.ledger import Ledger
from functions.promote.plan import Kind
from functions.promote.policy import Policy
from functions.promote.reconciler import Reconciler
from functions.promote.registry import Registry
from functions.promote.signals import Monitoring
from tests.bundles import make_bundle
from tests.local.conftest import PROJECT, REGION, StandIn, stand_in
from tests.terraform.conftest import State, Terraform, prepare
from tests.terraform.log_entries import Entry, entry_of, extract, matches

__all__ = ["stand_in"]

VARIABLES = {
    "budget": {"amount": 100, "billing_account": "012345-6789AB-CDEF01"},
    "database_instance": "mlflow",
    "notification_emails": ["ops@example.com"],
    "project": "greenroom-offline",
    "project_number": "123456789012",
    "region": REGION,
}

Resources = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Terraform:
    """The module alone."""
    whole = prepare(tmp_path_factory.mktemp("monitoring") / "terraform")
    terraform = Terraform(whole.folder / "monitoring", whole.environment)
    terraform.set(**VARIABLES)
    return terraform


@pytest.fixture(scope="module")
def planned(terraform: Terraform) -> Resources:
    found: Resources = {}
    for item in terraform.plan()["planned_values"]["root_module"]["resources"]:
        found.setdefault(item["type"], []).append(item["values"])
    return found


@pytest.fixture(scope="module")
def metrics(planned: Resources) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in planned["google_logging_metric"]}


def labels(metric: dict[str, Any], entry: Entry) -> dict[str, str]:
    return {key: extract(text, entry) for key, text in metric["label_extractors"].items()}


# What predict logs


async def predict_lines(capsys: pytest.CaptureFixture[str]) -> dict[str, Entry]:
    app = create_app(read_bundle(make_bundle()), model_version="10", revision="predict-00007")
    requests = {
        "answered": ("/predict", {"text": "very cool zzz"}),
        "refused": ("/predict", {"text": 1}),
        "batch": ("/predict:batch", {"texts": ["cool", "zzz"]}),
        "elsewhere": ("/nowhere", {}),
    }
    found = {}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://predict") as client:
        for name, (path, body) in requests.items():
            capsys.readouterr()
            await client.post(path, json=body)
            [line] = capsys.readouterr().out.splitlines()
            found[name] = entry_of(line, service="predict", region=REGION, revision="predict-00007")
    return found


async def test_predictions_are_counted_by_version_and_revision(
    metrics: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    entries = await predict_lines(capsys)
    metric = metrics["greenroom/predictions"]
    counted = {name for name, entry in entries.items() if matches(metric["filter"], entry)}
    assert counted == {"answered", "batch"}
    assert labels(metric, entries["answered"]) == {
        "model_version": "10",
        "revision": "predict-00007",
    }


async def test_unknown_words_are_measured_by_version(
    metrics: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    entries = await predict_lines(capsys)
    metric = metrics["greenroom/unknown_share"]
    shares = {
        name: float(extract(metric["value_extractor"], entry))
        for name, entry in entries.items()
        if matches(metric["filter"], entry)
    }
    assert shares.keys() == {"answered", "batch"}
    assert 0 < shares["answered"] <= 1
    assert labels(metric, entries["answered"]) == {"model_version": "10"}
    # Every share falls into a bucket that is not the last, which has no end.
    [options] = metric["bucket_options"]
    [buckets] = options["linear_buckets"]
    assert buckets["offset"] + buckets["num_finite_buckets"] * buckets["width"] == pytest.approx(1)


# What promote logs


@pytest.fixture
def reconciler(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Reconciler:
    """Promote beside a service that was just made; nothing else answers."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    stand_in.create("monitored")
    where = {"project": PROJECT, "region": REGION, "service": "monitored"}
    nowhere = "http://127.0.0.1:1"
    return Reconciler(
        registry=Registry(tracking_uri=nowhere, model="yelp-model", sources=("alias:production",)),
        bundles=Bundles(model="yelp-model", artifacts_bucket="a", serving_bucket="s"),
        cloud_run=CloudRun(**where, endpoint=f"http://127.0.0.1:{stand_in.api_port}"),
        gates=Gates(Policy()),
        ledger=Ledger(project=PROJECT, database="(default)"),
        monitoring=Monitoring(**where, endpoint=nowhere),
        feedback=None,
        policy=Policy(),
    )


def promote_entry(line: str) -> Entry:
    return entry_of(line, service="promote", region=REGION, revision="promote-00001")


async def test_what_promote_does_is_counted_and_a_rollback_alerts(
    metrics: dict[str, dict[str, Any]],
    planned: Resources,
    reconciler: Reconciler,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    transport = httpx.ASGITransport(create_promote(reconciler))
    with caplog.at_level(logging.INFO):
        async with httpx.AsyncClient(transport=transport, base_url="http://promote") as client:
            # Pins the traffic; then there is no registry to be asked.
            statuses: list[int] = []
            while len(statuses) < 20 and 503 not in statuses:
                statuses.append((await client.post("/")).status_code)
            await client.get("/status")
            await client.get("/health")
    access = [promote_entry(line) for line in capsys.readouterr().out.splitlines()]
    ticks = metrics["greenroom/ticks"]
    counted = [entry for entry in access if matches(ticks["filter"], entry)]
    assert [labels(ticks, entry)["status"] for entry in counted] == list(map(str, statuses))
    assert {"200", "503"} == {labels(ticks, entry)["status"] for entry in counted}

    lines = [JsonFormatter().format(record) for record in caplog.records if record.name == "root"]
    [pin] = [line for line in lines if '"pin: ' in line]
    [alert] = [
        item["conditions"][0]["condition_matched_log"][0]
        for item in planned["google_monitoring_alert_policy"]
        if item["conditions"][0]["condition_matched_log"]
    ]
    rollouts = metrics["greenroom/rollouts"]
    seen = {}
    for kind in Kind:
        # The same line for each thing that promote does.
        entry = promote_entry(pin.replace('"pin: ', f'"{kind.value}: '))
        seen[kind.value] = (matches(rollouts["filter"], entry), matches(alert["filter"], entry))
        if seen[kind.value][0]:
            assert labels(rollouts, entry) == {"action": kind.value}
        if seen[kind.value][1]:
            assert extract(alert["label_extractors"]["reason"], entry).startswith(kind.value)
    assert {name for name, (counted, _) in seen.items() if counted} == {
        *("create", "tag", "step", "promote", "block", "back")
    }
    assert {name for name, (_, alerts) in seen.items() if alerts} == {"block", "back"}
    # A warning is none of these.
    warned = pin.replace('"pin: ', '"the ledger is behind: block: ')
    assert not matches(alert["filter"], promote_entry(warned))


# What is watched


def test_every_alert_reaches_somebody_and_says_what_to_do(planned: Resources) -> None:
    policies = planned["google_monitoring_alert_policy"]
    titles = {item["display_name"] for item in policies}
    assert len(titles) == len(policies)
    for words in (
        *("predict answers with errors", "predict is slow", "a rollout was rolled back"),
        *("promote does not tick", "fills its disk", "out of memory"),
    ):
        assert any(words in title for title in titles), words
    for item in policies:
        assert item["documentation"][0]["content"].strip()
        assert item["severity"] in monitoring_v3.AlertPolicy.Severity.__members__
        assert "notification_channels" not in item or item["notification_channels"]


def test_queries_name_metrics_in_the_form_that_promql_knows(planned: Resources) -> None:
    """A metric of a project from empty has sent nothing yet: conditions are not refused for it."""
    queries = [
        condition["condition_prometheus_query_language"][0]
        for item in planned["google_monitoring_alert_policy"]
        for condition in item["conditions"]
        if condition["condition_prometheus_query_language"]
    ]
    assert len(queries) == 5
    # Promote's first tick comes after the alert is there.
    for item in planned["google_monitoring_alert_policy"]:
        if "does not tick" in item["display_name"]:
            [condition] = item["conditions"]
            [query] = condition["condition_prometheus_query_language"]
            assert query["duration"] == "600s"
    for query in queries:
        assert query["disable_metric_validation"] is True
        assert "monitored_resource=" in query["query"]
        check_query(query["query"])


def check_query(query: str) -> None:
    """Refuse what is no PromQL, and metrics that nobody writes."""
    promql_parser.parse(query.replace("${__interval}", "5m"))
    named = set(re.findall(r"[a-z_]+:[a-z_]+", re.sub(r'"[^"]*"|\[[^\]]*\]', "", query)))
    assert named
    assert named <= {
        "cloudsql_googleapis_com:database_cpu_utilization",
        "cloudsql_googleapis_com:database_disk_utilization",
        "cloudsql_googleapis_com:database_memory_utilization",
        "logging_googleapis_com:user_greenroom_answers",
        "logging_googleapis_com:user_greenroom_predictions",
        "logging_googleapis_com:user_greenroom_rollouts",
        "logging_googleapis_com:user_greenroom_ticks",
        "logging_googleapis_com:user_greenroom_unknown_share_count",
        "logging_googleapis_com:user_greenroom_unknown_share_sum",
        "run_googleapis_com:container_cpu_utilizations_bucket",
        "run_googleapis_com:container_instance_count",
        "run_googleapis_com:container_memory_utilizations_bucket",
        "run_googleapis_com:request_count",
        "run_googleapis_com:request_latencies_bucket",
    }, query


def test_the_dashboard_shows_what_was_promised(
    planned: Resources, metrics: dict[str, dict[str, Any]]
) -> None:
    [dashboard] = planned["google_monitoring_dashboard"]
    tiles = json.loads(dashboard["dashboard_json"])["mosaicLayout"]["tiles"]
    titles = " / ".join(tile["widget"]["title"] for tile in tiles).lower()
    for words in (
        *("traffic by revision", "model version", "latency", "cpu", "memory"),
        *("correctness", "unknown words"),
    ):
        assert words in titles
    places = {(tile.get("xPos", 0), tile.get("yPos", 0)) for tile in tiles}
    assert len(places) == len(tiles)
    # The API leaves a 0 out, and each plan would set it again.
    assert all(tile.get(axis) != 0 for tile in tiles for axis in ("xPos", "yPos"))
    queries = [
        data["timeSeriesQuery"]["prometheusQuery"]
        for tile in tiles
        for data in tile["widget"]["xyChart"]["dataSets"]
    ]
    for query in queries:
        check_query(query)
        # Of each metric: one that several kinds of resource may write is refused without it.
        named = re.findall(r"[a-z]+_googleapis_com:[a-z_]+", query)
        assert len(re.findall(r"[a-z]:[a-z_]+\{monitored_resource=", query)) == len(named), query
    # No metric is made from the logs that nobody looks at.
    for name in metrics:
        promql = "logging_googleapis_com:user_" + re.sub(r"[^a-z]", "_", name)
        assert any(promql in query for query in queries), name


def test_doors_are_watched_from_outside(planned: Resources) -> None:
    checks = {
        item["monitored_resource"][0]["labels"]["host"].split("-123456789012.")[0]: item
        for item in planned["google_monitoring_uptime_check_config"]
    }
    assert checks.keys() == {"predict", "promote", "mlflow-api", "proxy"}
    for name, item in checks.items():
        [http] = item["http_check"]
        assert http["use_ssl"]
        assert http["validate_ssl"]
        [accepted] = http["accepted_response_status_codes"]
        signed = bool(http["service_agent_authentication"])
        assert (accepted["status_value"], signed) == (
            (200, True) if name == "proxy" else (403, False)
        )


def test_the_two_objectives(planned: Resources) -> None:
    assert {item["slo_id"] for item in planned["google_monitoring_slo"]} == {
        "availability",
        "latency",
    }
    objectives = {item["slo_id"]: item for item in planned["google_monitoring_slo"]}
    [ratio] = objectives["availability"]["request_based_sli"][0]["good_total_ratio"]
    total, bad = ratio["total_service_filter"], ratio["bad_service_filter"]
    assert conditions_of(total) == of_service("proxy", "run.googleapis.com/request_count")
    assert conditions_of(bad) == conditions_of(total) | {
        # Refusals, 4xx, are the caller's.
        ("metric.labels.response_code_class", "5xx")
    }
    assert not ratio["good_service_filter"]
    [cut] = objectives["latency"]["request_based_sli"][0]["distribution_cut"]
    assert conditions_of(cut["distribution_filter"]) == of_service(
        "predict", "run.googleapis.com/request_latencies"
    )
    # Cloud Run measures in milliseconds.
    assert cut["range"] == [{"max": 500, "min": None}]
    assert "500 ms" in objectives["latency"]["display_name"]
    for objective in objectives.values():
        assert 0.9 < objective["goal"] < 1
        assert objective["rolling_period_days"] == 28


def test_a_budget_that_burns_ten_times_too_fast_alerts(state: State) -> None:
    """In an hour, and still in the last five minutes: what is over alerts no more."""
    burning = [
        item
        for item in state.of("google_monitoring_alert_policy").values()
        if "burns" in item["display_name"]
    ]
    objectives = {
        item["slo_id"]: item["name"] for item in state.of("google_monitoring_slo").values()
    }
    assert len(burning) == len(objectives) == 2
    for item in burning:
        assert item["combiner"] == "AND"
        [key] = [key for key in objectives if f"({key})" in item["display_name"]]
        thresholds = [condition["condition_threshold"][0] for condition in item["conditions"]]
        assert {condition["filter"] for condition in thresholds} == {
            f'select_slo_burn_rate("{objectives[key]}", "{window}")' for window in ("3600s", "300s")
        }
        for condition in thresholds:
            assert (condition["comparison"], condition["threshold_value"]) == ("COMPARISON_GT", 10)
            assert condition["duration"] == "0s"


def test_a_door_that_two_places_find_wrong_alerts(state: State) -> None:
    checks = {
        item["uptime_check_id"]: item["monitored_resource"][0]["labels"]["host"]
        for item in state.of("google_monitoring_uptime_check_config").values()
    }
    alerts = [
        (item["severity"], condition["condition_threshold"][0])
        for item in state.of("google_monitoring_alert_policy").values()
        for condition in item["conditions"]
        if condition["condition_threshold"]
        and "uptime_check" in condition["condition_threshold"][0]["filter"]
    ]
    watched = set()
    for severity, condition in alerts:
        found = dict(conditions_of(condition["filter"]))
        watched.add(found.pop("metric.labels.check_id"))
        assert found == {
            "metric.type": "monitoring.googleapis.com/uptime_check/check_passed",
            "resource.type": "uptime_url",
        }
        # More than one place, of those that were asked last.
        [aggregation] = condition["aggregations"]
        assert aggregation["per_series_aligner"] == "ALIGN_NEXT_OLDER"
        assert aggregation["cross_series_reducer"] == "REDUCE_COUNT_FALSE"
        assert (condition["comparison"], condition["threshold_value"]) == ("COMPARISON_GT", 1)
        assert severity == "CRITICAL"
    assert watched == checks.keys()
    assert len(checks) == 4


def conditions_of(filter: str) -> set[tuple[str, str]]:
    """Return what a filter of Monitoring asks for, all at once."""
    parts = [re.fullmatch(r'([a-z_.]+)="([^"]*)"', part) for part in filter.split(" AND ")]
    assert all(parts), filter
    return {(part[1], part[2]) for part in parts if part}


def of_service(service: str, metric: str) -> set[tuple[str, str]]:
    return {
        ("metric.type", metric),
        ("resource.type", "cloud_run_revision"),
        ("resource.labels.location", REGION),
        ("resource.labels.service_name", service),
    }


def test_the_budget_warns_before_it_is_spent(planned: Resources) -> None:
    [budget] = planned["google_billing_budget"]
    rules = {(rule["threshold_percent"], rule["spend_basis"]) for rule in budget["threshold_rules"]}
    assert (0.5, "CURRENT_SPEND") in rules
    assert (1, "FORECASTED_SPEND") in rules
    assert budget["amount"][0]["specified_amount"][0]["units"] == "100"


def test_wrong_values_are_explained(terraform: Terraform, tmp_path: Path) -> None:
    values = tmp_path / "wrong.tfvars.json"
    wrong = {
        "budget": {"amount": 0.5, "billing_account": "My account"},
        "notification_channels": ["1"],
        "notification_emails": ["ops"],
        "prefix": "Green Room",
        "slo": {"availability": 99.5, "period_days": 90},
        "thresholds": {"error_share": 2, "silent_minutes": 1},
        "uptime_period_seconds": 120,
    }
    values.write_text(json.dumps(wrong))
    result = terraform.run("plan", "-input=false", "-no-color", f"-var-file={values}")
    assert result.returncode == 1
    said = " ".join(result.stderr.replace("│", " ").split())
    for words in (
        *("the account's id, such as", "a whole number of at least 1"),
        *("projects/PROJECT/notificationChannels/ID", "e-mail addresses such as"),
        *("lower-case letters, digits and hyphens", "slo.latency are shares between 0 and 1"),
        *("slo.period_days is between 1 and 30", "are shares between 0 and 1"),
        *("is between 5", "every 60, 300, 600 or 900 seconds"),
    ):
        assert words in said
