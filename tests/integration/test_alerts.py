"""`infra/alerts.yaml`: rules that Prometheus takes, over metrics that there are, with runbooks."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stillreel.api.metrics import Facts, families
from stillreel.project import project_dir
from stillreel.usage import Used

FILE = project_dir() / "infra" / "alerts.yaml"
CASES = Path(__file__).with_name("alerts_test.yaml")
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]
]


def exported() -> dict[str, set[str]]:
    """The labels of each sample that the API tells, by its name."""
    one = {("a", "b"): 1}
    oldest, money = {("a", "b"): 1.0}, {"spent": 1.0}
    facts = Facts(True, one, one, oldest, {"a": 1}, {"a": Used()}, money, 1.0, storage_up=True)
    found: dict[str, set[str]] = {}
    for family in families(facts, {("GET", "/", "200"): 1}, {}):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_metric_and_label_of_a_rule_is_told(rule: dict[str, Any]) -> None:
    known = exported()
    named = re.findall(r"\b(stillreel_\w+)(?:\{([^}]*)\})?", rule["expr"])
    assert named or re.search(r"\bup\b", rule["expr"])
    for name, labels in named:
        assert name in known, name
        assert set(re.findall(r"(\w+)\s*(?:=|!)", labels)) <= known[name], (name, labels)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alarm_has_its_runbook(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    titles = re.findall(r"^#+ (.+)$", (project_dir() / page).read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert anchor in anchors
    assert rule["labels"]["severity"] in ("page", "ticket")


def test_counts_that_alarms_look_at_begin_at_zero() -> None:
    """Prometheus sees no increase in a series that is born at 1."""
    actions = {
        sample.labels["action"]: sample.value
        for family in families(Facts(), {}, {})
        for sample in family.samples
        if sample.name == "stillreel_keeper_actions_total"
    }
    for rule in RULES:
        for action in re.findall(r'action="(\w+)"', rule["expr"]):
            assert actions[action] == 0


def test_prometheus_fires_them_when_it_should_and_not_else(
    require: Callable[[str, bool], None], tmp_path: Path
) -> None:
    require("promtool (tests/services/install.sh)", bool(shutil.which("promtool")))
    for source in (FILE, CASES):
        shutil.copy(source, tmp_path)
    for words in (("check", "rules", FILE.name), ("test", "rules", CASES.name)):
        done = subprocess.run(
            ["promtool", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    cases = yaml.safe_load(CASES.read_text())["tests"]
    fired = {c["alertname"] for test in cases for c in test["alert_rule_test"] if c["exp_alerts"]}
    assert fired == {rule["alert"] for rule in RULES}
