"""The admin API, driven by Google's own client."""

from collections.abc import Callable
from typing import Any

import pytest
from google.api_core import exceptions
from google.cloud import run_v2
from google.longrunning import operations_pb2
from google.protobuf import field_mask_pb2

from tests.local.conftest import (
    LATEST,
    NUMBER,
    PARENT,
    REVISION,
    StandIn,
    latest,
    pinned,
    result,
    service_body,
    short,
    template,
    wait_for,
)

State = run_v2.Condition.State


def statuses(service: run_v2.Service) -> list[tuple[str, int, str]]:
    return [(s.revision, s.percent, s.tag) for s in service.traffic_statuses]


# Birth


def test_new_service_serves_its_first_revision(stand_in: StandIn, service_name: str) -> None:
    operation = stand_in.services.create_service(
        parent=PARENT,
        service_id=service_name,
        service=service_body("--greeting", labels={"app": "x"}, annotations={"a.dev/b": "{}"}),
    )
    assert not operation.operation.done
    born = stand_in.get(service_name)
    assert born.reconciling
    assert born.generation == 1
    assert born.observed_generation == 0
    assert not born.latest_ready_revision
    assert not born.traffic_statuses
    assert born.terminal_condition.state == State.CONDITION_RECONCILING

    done = result(operation)

    settled = stand_in.get(service_name)
    assert done == settled
    assert operation.metadata.name == settled.name == f"{PARENT}/services/{service_name}"
    assert not settled.reconciling
    assert settled.generation == settled.observed_generation == 1
    assert settled.latest_ready_revision == settled.latest_created_revision
    assert settled.terminal_condition.type_ == "Ready"
    assert settled.terminal_condition.state == State.CONDITION_SUCCEEDED
    assert {c.type_ for c in settled.conditions} == {"RoutesReady", "ConfigurationsReady"}
    assert settled.uri == f"http://{service_name}.localhost:{stand_in.port}"
    assert list(settled.urls) == [settled.uri]
    assert settled.uid
    assert settled.creator
    assert settled.etag
    assert settled.create_time
    # Empty traffic means the latest; its status names no revision, as in the cloud.
    assert [(t.type_, t.percent) for t in settled.traffic] == [(LATEST, 100)]
    assert [(t.type_, t.revision, t.percent) for t in settled.traffic_statuses] == [
        (LATEST, "", 100)
    ]
    name = short(settled.latest_created_revision)
    prefix, generation, letters = name.rsplit("-", 2)
    assert (prefix, generation) == (service_name, "00001")
    assert len(letters) == 3
    assert letters.isalpha()
    stand_in.grant(service_name, "allUsers")
    answer = stand_in.call(service_name)
    assert answer["revision"] == name
    assert answer["args"] == ["--greeting"]


def test_defaults_are_filled_in(stand_in: StandIn, service_name: str) -> None:
    service = stand_in.create(service_name)
    container = service.template.containers[0]
    assert container.ports[0].container_port == 8080
    assert container.startup_probe.tcp_socket.port == 8080
    assert dict(container.resources.limits) == {"cpu": "1000m", "memory": "512Mi"}
    assert service.template.max_instance_request_concurrency == 80
    assert service.template.service_account == f"{NUMBER}-compute@developer.gserviceaccount.com"
    assert service.ingress == run_v2.IngressTraffic.INGRESS_TRAFFIC_ALL


def test_revision_shows_what_it_was_made_from(stand_in: StandIn, service_name: str) -> None:
    body = service_body("--one")
    body.template.labels = {"model-version": "7"}
    service = stand_in.deploy(service_name, body)
    revision = stand_in.revisions.get_revision(name=service.latest_created_revision)
    assert revision.labels == {"model-version": "7"}
    assert revision.containers == service.template.containers
    assert revision.service == service_name
    assert {c.type_: c.state for c in revision.conditions}["Ready"] == State.CONDITION_SUCCEEDED
    assert not revision.reconciling


def test_creating_twice_is_refused(stand_in: StandIn, service_name: str) -> None:
    stand_in.create(service_name)
    with pytest.raises(exceptions.AlreadyExists):
        stand_in.create(service_name)


@pytest.mark.parametrize("service_id", ["", "Upper", "1digit", "end-", "a" * 50, "a---b", "a_b"])
def test_bad_service_id(stand_in: StandIn, service_id: str) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        stand_in.create(service_id)


def test_validate_only_creates_nothing(stand_in: StandIn, service_name: str) -> None:
    request = run_v2.CreateServiceRequest(
        parent=PARENT, service_id=service_name, service=service_body(), validate_only=True
    )
    shown = stand_in.services.create_service(request=request).result()
    assert shown.template.max_instance_request_concurrency == 80
    with pytest.raises(exceptions.NotFound):
        stand_in.get(service_name)


# Names


def test_another_project_or_location_is_refused(stand_in: StandIn, service_name: str) -> None:
    stand_in.create(service_name)
    for parent in ("projects/other-project/locations/europe-west1", PARENT.replace("west1", "x9")):
        with pytest.raises(exceptions.PermissionDenied):
            stand_in.services.get_service(name=f"{parent}/services/{service_name}")
        with pytest.raises(exceptions.PermissionDenied):
            stand_in.services.list_services(parent=parent)
    with pytest.raises(exceptions.InvalidArgument):
        stand_in.services.get_service(name=service_name)
    by_number = PARENT.replace("greenroom-test", NUMBER)
    found = stand_in.services.get_service(name=f"{by_number}/services/{service_name}")
    assert found.name == f"{PARENT}/services/{service_name}"


def test_unknown_things_are_not_found(stand_in: StandIn, service_name: str) -> None:
    with pytest.raises(exceptions.NotFound):
        stand_in.get(service_name)
    with pytest.raises(exceptions.NotFound):
        stand_in.write(run_v2.Service(name=stand_in.name(service_name), template=template()))
    with pytest.raises(exceptions.NotFound):
        stand_in.revisions.list_revisions(parent=stand_in.name(service_name))
    stand_in.create(service_name)
    with pytest.raises(exceptions.NotFound):
        stand_in.revisions.get_revision(name=f"{stand_in.name(service_name)}/revisions/none")
    with pytest.raises(exceptions.NotFound):
        stand_in.services.get_operation(
            operations_pb2.GetOperationRequest(name=f"{PARENT}/operations/none")
        )


def test_lists_come_in_pages(stand_in: StandIn, service_name: str) -> None:
    stand_in.create(service_name)
    names = [stand_in.new_revision(service_name, f"--n={n}") for n in range(2)]
    request = run_v2.ListRevisionsRequest(parent=stand_in.name(service_name), page_size=1)
    pager = stand_in.revisions.list_revisions(request=request)
    listed = [short(revision.name) for revision in pager]
    assert listed[:2] == names[::-1]
    assert len(listed) == 3
    everywhere = stand_in.revisions.list_revisions(parent=f"{PARENT}/services/-")
    assert set(listed) <= {short(revision.name) for revision in everywhere}
    found = stand_in.services.list_services(
        request=run_v2.ListServicesRequest(parent=PARENT, page_size=1)
    )
    assert stand_in.name(service_name) in [service.name for service in found]


# Revisions


def test_only_a_changed_template_makes_a_revision(stand_in: StandIn, service_name: str) -> None:
    first = stand_in.create(service_name, "--a")
    again = stand_in.update(
        run_v2.Service(name=first.name, template=template("--a"), labels={"x": "y"}),
        "template",
        "labels",
    )
    assert again.latest_created_revision == first.latest_created_revision
    assert again.generation == again.observed_generation == 2
    changed = stand_in.update(run_v2.Service(name=first.name, template=template("--b")), "template")
    assert changed.latest_created_revision != first.latest_created_revision
    assert short(changed.latest_created_revision).startswith(f"{service_name}-00003-")


def test_nothing_changed_is_no_new_generation(stand_in: StandIn, service_name: str) -> None:
    before = stand_in.create(service_name)
    operation = stand_in.write(before)
    assert operation.operation.done
    assert operation.result() == before
    assert stand_in.get(service_name) == before


def test_named_revision_blocks_every_other_write(stand_in: StandIn, service_name: str) -> None:
    # google-cloud-python#11870 and #14259: a read-change-write of a service whose stored
    # template carries a name is refused, whatever it changes.
    body = service_body()
    body.template.revision = f"{service_name}-mine"
    service = stand_in.deploy(service_name, body)
    assert short(service.latest_ready_revision) == f"{service_name}-mine"

    def writes() -> list[tuple[run_v2.Service, tuple[str, ...]]]:
        name = stand_in.name(service_name)
        other = template("--other", revision=f"{service_name}-mine")
        return [
            (run_v2.Service(name=name, template=other), ("template",)),
            (run_v2.Service(name=name, scaling={"min_instance_count": 1}), ("scaling",)),
            (run_v2.Service(name=name, traffic=[pinned(f"{service_name}-mine")]), ("traffic",)),
        ]

    for sent, mask in writes():
        with pytest.raises(exceptions.Conflict, match="with different configuration already exist"):
            stand_in.write(sent, *mask)
    freed = stand_in.update(
        run_v2.Service(name=service.name, template=template("--other")), "template"
    )
    assert short(freed.latest_created_revision).startswith(f"{service_name}-00002-")
    body.template.revision = "elsewhere-mine"
    with pytest.raises(exceptions.InvalidArgument):
        stand_in.write(run_v2.Service(name=service.name, template=body.template), "template")


@pytest.mark.parametrize(
    ("args", "image", "message"),
    [
        ((), "unknown:1", "Image 'unknown:1' not found"),
        ((), "nothing:1", "/no/such/program"),
        (("--exit=3",), "predict:1", r"exit\(3\).*Log: "),
    ],
)
def test_failed_revision_leaves_traffic_where_it_was(
    stand_in: StandIn, service_name: str, args: tuple[str, ...], image: str, message: str
) -> None:
    good = stand_in.create(service_name)
    operation = stand_in.write(
        run_v2.Service(name=good.name, template=template(*args, image=image)), "template"
    )
    failed = stand_in.settled(service_name)
    with pytest.raises(exceptions.GoogleAPICallError, match=message):
        result(operation)
    bad = short(failed.latest_created_revision)
    assert not failed.reconciling
    assert failed.latest_ready_revision == good.latest_ready_revision
    assert failed.terminal_condition.state == State.CONDITION_FAILED
    assert failed.terminal_condition.reason == run_v2.Condition.CommonReason.REVISION_FAILED
    assert f"Revision '{bad}' is not ready" in failed.terminal_condition.message
    # Documented: the generation that serves, not the one that failed.
    assert (failed.generation, failed.observed_generation) == (2, 1)
    assert failed.traffic_statuses == good.traffic_statuses
    revision = stand_in.revisions.get_revision(name=failed.latest_created_revision)
    assert {c.type_: c.state for c in revision.conditions}["Ready"] == State.CONDITION_FAILED
    assert stand_in.call(service_name)["revision"] == short(good.latest_ready_revision)

    # A traffic-only write takes effect although the service stays failed.
    old = short(good.latest_ready_revision)
    routed = stand_in.route(service_name, pinned(old, tag="stable"))
    assert statuses(routed) == [(old, 100, "stable")]
    assert routed.terminal_condition.state == State.CONDITION_FAILED
    assert stand_in.call(service_name, tag="stable")["revision"] == old
    with pytest.raises(exceptions.InvalidArgument, match="is not ready"):
        stand_in.route(service_name, pinned(bad))

    # The way out: a template that starts.
    stand_in.new_revision(service_name, "--fine")
    healed = stand_in.get(service_name)
    assert healed.terminal_condition.state == State.CONDITION_SUCCEEDED
    assert healed.observed_generation == healed.generation


def test_container_that_does_not_listen_fails(make_stand_in: Callable[..., StandIn]) -> None:
    stand_in = make_stand_in(startup_timeout_seconds=1)
    service = stand_in.create("predict", "--deaf")
    assert service.terminal_condition.state == State.CONDITION_FAILED
    assert "PORT environment variable within 1 seconds" in service.terminal_condition.message
    assert not service.traffic_statuses
    assert not service.latest_ready_revision
    assert service.observed_generation == 0
    assert stand_in.http.get(stand_in.url("predict")).status_code == 503
    wait_for(stand_in.containers, lambda pids: not pids)
    log = stand_in.folder / "data" / "logs" / f"{short(service.latest_created_revision)}.log"
    assert log.read_text().startswith("hello from predict-00001-")


def test_http_startup_probe_is_honoured(stand_in: StandIn, service_name: str) -> None:
    body = service_body("--unready=0.7")
    body.template.containers[0].startup_probe = run_v2.Probe(
        period_seconds=1, failure_threshold=5, http_get=run_v2.HTTPGetAction(path="/ready")
    )
    assert stand_in.deploy(service_name, body).terminal_condition.state == State.CONDITION_SUCCEEDED
    body.template.containers[0].startup_probe.failure_threshold = 1
    body.template.containers[0].args = ["--unready=60"]
    service = stand_in.update(
        run_v2.Service(name=stand_in.name(service_name), template=body.template), "template"
    )
    assert "startup probe at /ready within 1 seconds" in service.terminal_condition.message


def test_newer_write_wins_while_reconciling(stand_in: StandIn, service_name: str) -> None:
    stand_in.create(service_name, "--first")
    name = stand_in.name(service_name)
    slow = stand_in.write(
        run_v2.Service(name=name, template=template("--delay=2", "--second")), "template"
    )
    stand_in.write(run_v2.Service(name=name, template=template("--third")), "template")
    service = stand_in.settled(service_name)
    assert service.generation == service.observed_generation == 3
    assert stand_in.call(service_name)["args"] == ["--third"]
    assert slow.done()
    # The one overtaken becomes ready too, and changes nothing.
    wait_for(
        lambda: stand_in.revisions.list_revisions(parent=name).revisions[1],
        lambda revision: not revision.reconciling,
    )
    assert stand_in.call(service_name)["args"] == ["--third"]
    assert stand_in.get(service_name).latest_ready_revision == service.latest_ready_revision


def test_traffic_does_not_wait_for_a_revision_that_starts(
    stand_in: StandIn, service_name: str
) -> None:
    first = short(stand_in.create(service_name, "--first").latest_ready_revision)
    second = stand_in.new_revision(service_name, "--second")
    stand_in.route(service_name, pinned(second))
    name = stand_in.name(service_name)
    stand_in.write(run_v2.Service(name=name, template=template("--delay=3")), "template")
    stand_in.write(run_v2.Service(name=name, traffic=[pinned(first)]), "traffic")
    routed = wait_for(
        lambda: stand_in.get(service_name), lambda s: statuses(s) == [(first, 100, "")]
    )
    assert routed.reconciling
    assert stand_in.call(service_name)["revision"] == first


# Traffic


def test_latest_follows_the_latest_ready_revision(stand_in: StandIn, service_name: str) -> None:
    first = short(stand_in.create(service_name).latest_ready_revision)
    stand_in.route(service_name, pinned(first), latest(0, "next"))
    assert stand_in.call(service_name, tag="next")["revision"] == first
    stand_in.write(
        run_v2.Service(name=stand_in.name(service_name), template=template("--delay=1")),
        "template",
    )
    assert stand_in.call(service_name, tag="next")["revision"] == first
    second = short(stand_in.settled(service_name).latest_ready_revision)
    assert second != first
    assert stand_in.call(service_name, tag="next")["revision"] == second
    assert stand_in.call(service_name)["revision"] == first


def test_pinned_traffic_means_a_new_revision_gets_none(
    stand_in: StandIn, service_name: str
) -> None:
    first = short(stand_in.create(service_name).latest_ready_revision)
    stand_in.route(service_name, pinned(first))
    second = stand_in.new_revision(service_name, "--second")
    assert stand_in.call(service_name)["revision"] == first
    tagged = stand_in.route(service_name, pinned(first), pinned(second, 0, "candidate"))
    assert statuses(tagged) == [(first, 100, ""), (second, 0, "candidate")]
    assert [s.uri for s in tagged.traffic_statuses] == [
        "",
        f"http://candidate---{service_name}.localhost:{stand_in.port}",
    ]
    assert stand_in.call(service_name, tag="candidate")["revision"] == second
    # The list in the mask replaces the whole list.
    stand_in.route(service_name, pinned(second))
    response = stand_in.http.get(stand_in.url(service_name, tag="candidate"))
    assert response.status_code == 404


def test_traffic_that_cannot_be_routed_is_refused(stand_in: StandIn, service_name: str) -> None:
    service = stand_in.create(service_name)
    name = short(service.latest_ready_revision)
    other = short(stand_in.create(f"{service_name}-b").latest_ready_revision)
    unspecified = run_v2.TrafficTarget(revision=name, percent=100)
    latest_named = run_v2.TrafficTarget(type_=LATEST, revision=name, percent=100)
    nameless = run_v2.TrafficTarget(type_=REVISION, percent=100)
    refused: list[tuple[list[run_v2.TrafficTarget], str]] = [
        ([pinned(name, 99)], "add up to 99"),
        ([pinned(name, 60), latest(60)], "add up to 120"),
        ([pinned(name, 150), pinned(name, -50)], "between 0 and 100"),
        ([pinned(f"{service_name}-00009-abc")], "does not exist"),
        ([pinned(other)], "does not exist"),
        ([pinned(service.latest_ready_revision)], "short name"),
        ([unspecified], "type must be"),
        ([latest_named], "must be empty"),
        ([nameless], "is required"),
        ([pinned(name, 100, "a"), pinned(name, 0, "a")], "given twice"),
        ([pinned(name, 100, "A")], "must use only"),
        ([pinned(name, 100, "1a")], "must use only"),
        ([pinned(name, 100, "a-")], "must use only"),
        ([pinned(name, 100, "a" * 46)], "together"),
    ]
    for targets, message in refused:
        with pytest.raises(exceptions.InvalidArgument, match=message):
            stand_in.route(service_name, *targets)
    assert stand_in.get(service_name) == service


# Masks and etags


def test_only_fields_in_the_mask_are_taken(stand_in: StandIn, service_name: str) -> None:
    stand_in.create(service_name, "--a", labels={"keep": "me"}, description="before")
    sent = run_v2.Service(
        name=stand_in.name(service_name),
        description="after",
        labels={"new": "label"},
        template=template("--b", labels={"v": "2"}),
    )
    described = stand_in.update(sent, "description")
    assert described.description == "after"
    assert described.labels == {"keep": "me"}
    labelled = stand_in.update(sent, "template.labels")
    assert labelled.template.labels == {"v": "2"}
    assert list(labelled.template.containers[0].args) == ["--a"]
    contained = stand_in.update(sent, "template.containers", "annotations")
    assert list(contained.template.containers[0].args) == ["--b"]
    assert stand_in.call(service_name)["args"] == ["--b"]


def test_empty_mask_replaces_everything(stand_in: StandIn, service_name: str) -> None:
    first = stand_in.create(service_name, "--a", labels={"x": "y"}, annotations={"a.dev/b": "c"})
    stand_in.route(service_name, pinned(short(first.latest_ready_revision)))
    replaced = stand_in.update(run_v2.Service(name=first.name, template=template("--b")))
    assert not replaced.labels
    assert not replaced.annotations
    assert [t.type_ for t in replaced.traffic] == [LATEST]
    assert replaced.uid == first.uid
    assert replaced.create_time == first.create_time
    assert stand_in.call(service_name)["args"] == ["--b"]


@pytest.mark.parametrize(
    "path",
    [
        "nonsense",
        "template.nonsense",
        "template.containers.args",
        "annotations.key",
        "scaling.minInstanceCount",
        "etag",
        "name",
        "uri",
        "traffic_statuses",
        "description.x",
        "*",
        "",
    ],
)
def test_unknown_mask_path(stand_in: StandIn, path: str) -> None:
    if "masks" not in {short(s.name) for s in stand_in.services.list_services(parent=PARENT)}:
        stand_in.create("masks")
    with pytest.raises(exceptions.InvalidArgument, match="update_mask"):
        stand_in.write(run_v2.Service(name=stand_in.name("masks"), template=template()), path)


def test_stale_etag_is_aborted(stand_in: StandIn, service_name: str) -> None:
    read = stand_in.create(service_name)
    read.description = "mine"
    mine = stand_in.update(read, "description")
    assert mine.etag != read.etag
    read.description = "again"
    with pytest.raises(exceptions.Aborted):
        stand_in.write(read, "description")
    mine.description = "again"
    stand_in.update(mine, "description")
    with pytest.raises(exceptions.Aborted):
        stand_in.services.delete_service(
            request=run_v2.DeleteServiceRequest(name=read.name, etag=read.etag)
        )


def test_terraform_writes_back_what_it_read_earlier(stand_in: StandIn, service_name: str) -> None:
    # The provider's PATCH: whole body, no mask, no etag, from the last refresh.
    stand_in.create(service_name, "--model=1")
    first = short(stand_in.get(service_name).latest_ready_revision)
    stand_in.route(service_name, pinned(first))
    stale = stand_in.get(service_name)
    second = stand_in.new_revision(service_name, "--model=2")
    stand_in.route(service_name, pinned(second))
    assert stand_in.call(service_name)["revision"] == second

    stale.etag = ""
    after = stand_in.update(stale)

    assert statuses(after) == [(first, 100, "")]
    assert stand_in.call(service_name)["revision"] == first
    # Revisions are never taken up again: the old template makes a third one.
    assert short(after.latest_created_revision) not in (first, second)
    # With a revision deleted since, the same write is refused.
    stand_in.route(service_name, pinned(second))
    stand_in.revisions.delete_revision(name=f"{stale.name}/revisions/{first}")
    with pytest.raises(exceptions.InvalidArgument, match="does not exist or is deleted"):
        stand_in.write(stale)


def test_allow_missing_creates(stand_in: StandIn, service_name: str) -> None:
    body = service_body("--a")
    body.name = stand_in.name(service_name)
    stand_in.write(body, allow_missing=True)
    stand_in.grant(service_name, "allUsers")
    assert stand_in.settled(service_name).generation == 1
    assert stand_in.call(service_name)["args"] == ["--a"]


def test_validate_only_changes_nothing(stand_in: StandIn, service_name: str) -> None:
    before = stand_in.create(service_name)
    sent = run_v2.Service(name=before.name, template=template("--b"))
    shown = stand_in.write(sent, "template", validate_only=True).result()
    assert shown.generation == 2
    assert stand_in.get(service_name) == before
    with pytest.raises(exceptions.InvalidArgument):
        stand_in.write(
            run_v2.Service(name=before.name, traffic=[latest(1)]), "traffic", validate_only=True
        )


# What is refused in a body


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"Upper": "x"}}, "labels: key"),
        ({"labels": {"x": "Upper"}}, "labels: value"),
        ({"labels": {"x": "a" * 64}}, "labels: value"),
        ({"labels": {"1x": "a"}}, "labels: key"),
        ({"labels": {"run.googleapis.com/x": "a"}}, "reserved namespace"),
        ({"annotations": {"run.googleapis.com/ingress": "all"}}, "reserved namespace"),
        ({"annotations": {"cloud.googleapis.com/x": "y"}}, "reserved namespace"),
        ({"annotations": {"serving.knative.dev/x": "y"}}, "reserved namespace"),
        ({"annotations": {"autoscaling.knative.dev/maxScale": "1"}}, "reserved namespace"),
        ({"annotations": {"a b": "y"}}, "not a valid annotation key"),
        ({"annotations": {"x": "y" * 300_000}}, "bytes in total"),
        ({"description": "x" * 513}, "description"),
    ],
)
def test_refused_service(stand_in: StandIn, change: dict[str, Any], message: str) -> None:
    with pytest.raises(exceptions.InvalidArgument, match=message):
        stand_in.create("refused", **change)


def _container(**fields: Any) -> dict[str, Any]:
    return {"containers": [{"image": "predict:1", **fields}]}


def _env(**fields: Any) -> dict[str, Any]:
    return _container(env=[fields])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "one container is required"),
        ({"containers": [{"image": "predict:1"}] * 2}, "sidecars"),
        ({"containers": [{"args": ["x"]}]}, "image is required"),
        ({**_container(), "labels": {"Upper": "x"}}, "template.labels"),
        ({**_container(), "annotations": {"run.googleapis.com/x": "y"}}, "template.annotations"),
        ({**_container(), "timeout": {"seconds": 3601}}, "template.timeout"),
        ({**_container(), "max_instance_request_concurrency": 1001}, "concurrency"),
        ({**_container(), "scaling": {"min_instance_count": 2, "max_instance_count": 1}}, "above"),
        ({**_container(), "volumes": [{"name": "x"}]}, "mounts no volumes"),
        (_env(name="PORT", value="1"), "reserved"),
        (_env(name="K_SERVICE", value="x"), "reserved"),
        (_env(name="a=b", value="x"), "not a valid name"),
        (_container(env=[{"name": "A"}, {"name": "A"}]), "given twice"),
        (
            _env(name="A", value_source={"secret_key_ref": {"secret": "s", "version": "1"}}),
            "Secret Manager",
        ),
        (_container(ports=[{"container_port": 1}, {"container_port": 2}]), "at most one port"),
        (_container(ports=[{"name": "h2c", "container_port": 8080}]), "HTTP/1 only"),
        (_container(resources={"limits": {"disk": "1"}}), "unknown key"),
        (_container(startup_probe={"http_get": {"path": "/", "port": 1}}), "port 8080 only"),
        (_container(startup_probe={"period_seconds": 1}), "one of http_get"),
        (
            _container(startup_probe={"timeout_seconds": 3, "period_seconds": 2, "http_get": {}}),
            "timeout_seconds",
        ),
    ],
)
def test_refused_template(stand_in: StandIn, fields: dict[str, Any], message: str) -> None:
    body = run_v2.Service(template=run_v2.RevisionTemplate(**fields))
    with pytest.raises(exceptions.InvalidArgument, match=message):
        stand_in.services.create_service(parent=PARENT, service_id="refused", service=body)
    with pytest.raises(exceptions.NotFound):
        stand_in.get("refused")


# Deleting


def test_revision_in_use_is_not_deleted(stand_in: StandIn, service_name: str) -> None:
    first = short(stand_in.create(service_name).latest_ready_revision)

    def delete(revision: str, **fields: Any) -> Any:
        name = f"{stand_in.name(service_name)}/revisions/{revision}"
        request = run_v2.DeleteRevisionRequest(name=name, **fields)
        return stand_in.revisions.delete_revision(request=request)

    with pytest.raises(exceptions.FailedPrecondition, match="only one"):
        delete(first)
    second = stand_in.new_revision(service_name, "--second")
    third = stand_in.new_revision(service_name, "--third")
    stand_in.route(service_name, pinned(first), pinned(second, 0, "candidate"))
    with pytest.raises(exceptions.FailedPrecondition, match="traffic or a tag"):
        delete(first)
    with pytest.raises(exceptions.FailedPrecondition, match="traffic or a tag"):
        delete(second)
    with pytest.raises(exceptions.FailedPrecondition, match="latest created"):
        delete(third)
    stand_in.route(service_name, pinned(first))
    with pytest.raises(exceptions.Aborted):
        delete(second, etag='"stale"')
    delete(second, validate_only=True)
    deleted = result(delete(second))
    assert short(deleted.name) == second
    with pytest.raises(exceptions.NotFound):
        delete(second)


def test_deleted_service_is_gone(stand_in: StandIn, service_name: str) -> None:
    service = stand_in.create(service_name)
    pid = stand_in.call(service_name)["pid"]
    pending = stand_in.write(
        run_v2.Service(name=service.name, template=template("--delay=5")), "template"
    )
    deleted = result(stand_in.services.delete_service(name=service.name))
    assert deleted.name == service.name
    with pytest.raises(exceptions.NotFound):
        stand_in.get(service_name)
    with pytest.raises(exceptions.Aborted, match="deleted"):
        result(pending)
    assert stand_in.http.get(stand_in.url(service_name)).status_code == 404
    wait_for(stand_in.containers, lambda pids: pid not in pids)
    # The name is free again, and nothing of the old one comes back.
    again = stand_in.create(service_name, "--again")
    assert again.uid != service.uid
    assert stand_in.call(service_name)["args"] == ["--again"]


# Operations


def test_operations_can_be_listed_and_waited_for(stand_in: StandIn, service_name: str) -> None:
    operation = stand_in.services.create_service(
        parent=PARENT, service_id=service_name, service=service_body("--delay=1")
    )
    name = operation.operation.name
    assert name.startswith(f"{PARENT}/operations/")
    request = operations_pb2.WaitOperationRequest(name=name)

    def wait(milliseconds: int) -> operations_pb2.Operation:
        request.timeout.FromMilliseconds(milliseconds)
        # Google's client hands the bytes through.
        return operations_pb2.Operation.FromString(stand_in.services.wait_operation(request))

    assert not wait(100).done
    done = wait(20_000)
    assert done.done
    assert done.response.type_url.endswith("google.cloud.run.v2.Service")
    assert done.metadata.type_url.endswith("google.cloud.run.v2.Service")
    listed = stand_in.services.list_operations(operations_pb2.ListOperationsRequest(name=PARENT))
    assert name in [each.name for each in listed.operations]


def test_update_mask_may_be_a_plain_field_mask(stand_in: StandIn, service_name: str) -> None:
    service = stand_in.create(service_name)
    service.description = "through the flattened call"
    mask = field_mask_pb2.FieldMask(paths=["description"])
    updated = result(stand_in.services.update_service(service=service, update_mask=mask))
    assert updated.description == "through the flattened call"
