"""The metrics of several replicas as one text."""

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rediprune.runtime.serving.metrics import Metrics

pytest.importorskip("ray")
from rediprune.runtime.serving.cluster.ray_board import Board, merge


def metrics_of(hits: int) -> str:
    metrics = Metrics()
    metrics.feature_hits.labels("m").inc(hits)
    metrics.first_token.labels("m").observe(0.3)
    return metrics.render().decode()


def test_a_metric_of_all_replicas_stands_together_and_is_read_by_prometheus() -> None:
    merged = merge({"a": metrics_of(2), "b": metrics_of(5)})
    families = {family.name: family for family in text_string_to_metric_families(merged)}
    hits = [each for each in families["rediprune:mm_cache_hits"].samples if each.name.endswith("_total")]
    assert {each.labels["replica"]: each.value for each in hits} == {"a": 2.0, "b": 5.0}
    assert all(each.labels["model_name"] == "m" for each in hits)
    buckets = families["rediprune:time_to_first_token_seconds"].samples
    assert len([each for each in buckets if each.name.endswith("_count")]) == 2
    assert merged.count("# TYPE rediprune:mm_cache_hits_total ") == 1


def test_who_reports_no_more_is_left_out() -> None:
    board = Board()
    board.put("old", metrics_of(1), time.time() - 60)
    board.put("new", metrics_of(2), time.time())
    assert 'replica="new"' in board.merged() and 'replica="old"' not in board.merged()
