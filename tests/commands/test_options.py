"""Options made from dataclasses: those of every method, their help by topic, the overview of commands."""

import pytest

from hf_sharp_unlearn import ASAM, METHODS, SAM, NegGradPlus, SharpMinMax
from hf_sharp_unlearn.commands import cli
from hf_sharp_unlearn.commands.method_options import MethodOptions
from hf_sharp_unlearn.commands.parsing import TOPICS, parse


@pytest.mark.parametrize("name", METHODS)
def test_the_options_of_every_method_are_its_dataclass(name):
    assert MethodOptions(method=name).build() == METHODS[name]()


def test_options_become_the_method():
    (options,) = parse("x", "", [MethodOptions], ["--alpha", "0.5", "--rho", "2", "--overlap", "false"])
    assert options.build() == SharpMinMax(alpha=0.5, sharpness=ASAM(rho=2.0), overlap=False)
    (options,) = parse("x", "", [MethodOptions], ["--method", "neggrad", "--sharpness", "sam"])
    assert options.build() == NegGradPlus(sharpness=SAM())
    (options,) = parse("x", "", [MethodOptions], ["--sharpness", "none"])
    assert options.build() == SharpMinMax(sharpness=None)
    (options,) = parse("x", "", [MethodOptions], ["--sharpness", "asam", "--eta", "0.1", "--adapt-1d", "false"])
    assert options.build().sharpness == ASAM(eta=0.1, adapt_1d=False)


def test_help_is_grouped_by_topic_with_units_and_defaults(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["unlearn", "--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    for topic in ("model", "data", "columns", "method", "results", "measurements", *TOPICS, "command"):
        assert f"\n{topic}:\n" in text, topic
    words = " ".join(text.split())
    assert "sharp_minmax 0.3: share of the trainable parameters in the forget part" in words
    assert "(default: unlearned)" in words and "(default: epoch)" in words, "this command's own"
    assert "(default: 0.01)" in words and "in tokens (default: 512)" in words and "Default: sam 0.1, asam 1.0" in words
    assert "other training arguments" not in text, "every argument has a topic"


def test_the_overview_lists_every_command(capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert raised.value.code == 0
    for name in ("unlearn", "evaluate", "push", "methods", "memorize", "landscape", "benchmark", "demo"):
        assert f"\n  {name} " in text
        with pytest.raises(SystemExit) as raised:
            cli.main([name, "--help"])
        assert raised.value.code == 0 and "usage: sharp-unlearn" in capsys.readouterr().out


def help_of(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_help_says_what_flags_do_and_shows_no_empty_default(capsys):
    text = help_of("unlearn", capsys)
    assert "--no_report, --no-report turn off --report" in text
    assert "--no_sync_perturbation, --no-sync-perturbation turn off --sync_perturbation" in text
    assert "(default: )" not in text and "as in RandomLabel" not in text
    assert "--do_train" not in text and "--do_predict" not in text


@pytest.mark.parametrize("flag", ["--do_train", "--do_eval", "--do_predict"])
def test_flags_that_would_do_nothing_are_refused(flag, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(["unlearn", "--model", "m", flag])
    assert raised.value.code == 2 and f"{flag} says nothing here" in capsys.readouterr().err
