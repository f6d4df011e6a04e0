"""What `make test-upstream` rests on: the adapter is fine-tuning as Trainer does it, and no difference goes unseen."""

import importlib
import sys
import types
from collections import Counter
from dataclasses import fields

import pytest
import transformers
from parts import ROOT, Mlp, assert_same, rows, weights_of

UPSTREAM = ROOT / "tests" / "upstream"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(UPSTREAM)
    return importlib.import_module


def test_adapter_trains_as_transformers_trainer_does(tool, tmp_path):
    adapter = tool("adapter")
    weights = []
    for trainer, arguments in (
        (transformers.Trainer, transformers.TrainingArguments),
        (adapter.Trainer, adapter.TrainingArguments),
    ):
        model = Mlp()
        settings = {"per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        settings |= {"dataloader_pin_memory": False, "report_to": "none"}
        trainer(model, arguments(str(tmp_path), **settings), train_dataset=rows(24)).train()
        weights.append(weights_of(model))
    assert_same(*weights)


@pytest.mark.parametrize(
    "given", [{}, {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}]
)
def test_adapter_has_the_defaults_of_transformers(tool, tmp_path, given):
    own = tool("adapter").TrainingArguments(str(tmp_path), **given)
    theirs = transformers.TrainingArguments(str(tmp_path), **given)
    for known in fields(theirs):
        assert getattr(own, known.name) == getattr(theirs, known.name), known.name


@pytest.mark.parametrize("name", ["test_module", "helper"])
def test_module_that_has_taken_the_original_is_refused(tool, monkeypatch, name):
    """Its tests would pass and claim nothing."""
    adapter = tool("adapter")
    modules = {known: types.ModuleType(f"theirs.{known}") for known in ("test_module", "helper")}
    for module in modules.values():
        module.Trainer = adapter.Trainer
        monkeypatch.setitem(sys.modules, module.__name__, module)
    session = types.SimpleNamespace(items=[types.SimpleNamespace(module=modules["test_module"])])
    adapter.pytest_collection_finish(session)
    modules[name].Trainer = transformers.Trainer
    with pytest.raises(pytest.UsageError, match=name):
        adapter.pytest_collection_finish(session)


def test_outcomes_of_a_report(tool, tmp_path):
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.trainer.test_a.A" name="good"/>'
        '<testcase classname="tests.trainer.test_a.A" name="bad"><failure message="KeyError: 0"/></testcase>'
        '<testcase classname="tests.trainer.test_a.A" name="bad"/>'  # the last of its subtests passes
        '<testcase classname="tests.trainer.test_a.A" name="unmade"><error message="OSError"/></testcase>'
        '<testcase classname="tests.trainer.test_a.A" name="left out"><skipped/></testcase></testsuite></testsuites>'
    )
    found = tool("compare").outcomes(report)
    assert found == {"test_a.A.good": None, "test_a.A.bad": "KeyError: 0", "test_a.A.unmade": "OSError"}


@pytest.mark.parametrize(
    "adapted, problem",
    [
        ({"same": None, "listed": "KeyError: 0"}, None),
        ({"same": "OSError", "listed": "KeyError: 0"}, "same fails, and is not listed: OSError"),
        ({"listed": "KeyError: 0"}, "same fails, and is not listed: did not run"),
        ({"same": None, "listed": None}, "listed passes now"),
        ({"same": None, "listed": "KeyError: 'x'"}, "listed fails otherwise"),
        ({"same": None, "listed": "KeyError: 0", "offline": None}, None),
    ],
)
def test_problems(tool, adapted, problem):
    compare = tool("compare")
    listed = compare.Difference(reason="meant so", error="^KeyError: 0", tests=["listed", "gone"])
    found = compare.compare({"same": None, "listed": None, "offline": "no network"}, adapted, [listed])
    assert found.unusable == ["offline", "gone"]
    if problem is None:
        assert (found.same, found.differ, found.problems) == (["same"], ["listed"], [])
    else:
        assert found.problems[0].startswith(problem)


def test_nothing_that_passes_is_a_problem(tool):
    assert tool("compare").compare({"only": "no network"}, {"only": "no network"}, []).problems


def test_list_of_differences(tool):
    differences = tool("compare").read_differences()
    assert all(entry.reason and entry.error and entry.tests for entry in differences)
    assert max(Counter(test for entry in differences for test in entry.tests).values()) == 1


def test_folder_without_their_tests_is_refused(tool, tmp_path):
    with pytest.raises(SystemExit, match="no checkout of transformers"):
        tool("compare").main(tmp_path)
