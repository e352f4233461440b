from prometheus_client.parser import text_string_to_metric_families

from service.metrics import SCREEN_BUCKETS_S, SWAPS, VERDICTS, Metrics
from service.verdict import STAGES

LABELS = ("bubble", "tin_ash")
CODES = ("unreadable_image", "internal_error")


def make() -> Metrics:
    return Metrics(labels=LABELS, codes=CODES)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_every_label_set_exists_before_the_first_screen() -> None:
    metrics = make()
    for verdict in VERDICTS:
        assert value(metrics, "inspect_screens_total", verdict=verdict) == 0
    for code in CODES:
        assert value(metrics, "inspect_errors_total", code=code) == 0
    for outcome in SWAPS:
        assert value(metrics, "inspect_swaps_total", outcome=outcome) == 0
    for label in LABELS:
        assert value(metrics, "inspect_defects_total", label=label) == 0
        assert value(metrics, "inspect_label_score_count", label=label) == 0
    for stage in (*STAGES, "record"):
        assert value(metrics, "inspect_stage_duration_seconds_count", stage=stage) == 0
    assert value(metrics, "inspect_patches_total") == 0
    assert value(metrics, "inspect_screens_in_flight") == 0


def test_two_apps_in_one_process_count_apart() -> None:
    one, other = make(), make()
    one.patches.inc(50)
    assert value(one, "inspect_patches_total") == 50
    assert value(other, "inspect_patches_total") == 0


def test_one_model_is_named_and_its_labels_begin_or_go_on() -> None:
    metrics = make()
    metrics.show_model("screens", "1", "onnxruntime", labels=LABELS)
    metrics.defects.labels("bubble").inc(3)
    for _ in range(2):  # the same once more is no other
        metrics.show_model("screens", "2", "tensorrt", labels=("bubble", "oil"))
        named = [sample for family in metrics.model_info.collect() for sample in family.samples]
        assert [sample.labels for sample in named] == [{"name": "screens", "version": "2", "runtime": "tensorrt"}]
    assert value(metrics, "inspect_defects_total", label="bubble") == 3
    assert value(metrics, "inspect_defects_total", label="oil") == 0
    assert value(metrics, "inspect_label_score_count", label="oil") == 0


def test_watched_gauge_is_read_at_the_scrape() -> None:
    metrics = make()
    waiting = [3.0]
    metrics.watch("queue_patches", "Patches waiting.", lambda: waiting[0])
    assert value(metrics, "inspect_queue_patches") == 3
    waiting[0] = 7.0
    assert value(metrics, "inspect_queue_patches") == 7


def test_buckets_have_an_edge_at_both_ends_of_the_takt() -> None:
    assert {0.333, 10.0} <= set(SCREEN_BUCKETS_S)
    assert min(SCREEN_BUCKETS_S) < 0.333
    assert max(SCREEN_BUCKETS_S) > 10.0


def test_exposition_parses_and_every_name_has_the_prefix() -> None:
    families = list(text_string_to_metric_families(make().exposition().decode()))
    assert len(families) >= 9
    # the process's own go by the names that everybody gives them
    assert {family.name.partition("_")[0] for family in families} == {"inspect", "process"}
    assert all(family.documentation for family in families)
