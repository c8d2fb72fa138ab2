"""``nnunet-din configure``: configurations that inherit from each other in the plans, and train."""

from __future__ import annotations

import json

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_din.commands import configure as configure_command
from nnunet_din.commands.main import main
from nnunet_din.network.alternatives.zero_dce import DCENet
from nnunet_din.nnunet.folders import weights_file
from nnunet_din.planners import configurations
from nnunet_din.planners.configurations import PAPER_TABLES, network_arguments
from nnunet_din.trainers.din_trainer import check_plans


@pytest.fixture
def path(dataset, plans):
    """A plans file of its own in the data set's folder."""
    path = dataset.preprocessed / "configureTestPlans.json"
    path.write_text(json.dumps({**plans, "plans_name": "configureTestPlans"}))
    yield path
    path.unlink()


def configure(*arguments):
    return main(["configure", "-d", "998", "-p", "configureTestPlans", *arguments])


def test_another_network_shares_the_data(path, capsys):
    before = json.loads(path.read_text())
    assert configure("--name", "2d_concat", "--set", "fusion=concat", "inputs=[0,1]") == 0
    plans = json.loads(path.read_text())
    assert {**plans["configurations"], "2d_concat": None} == {**before["configurations"], "2d_concat": None}
    entry = plans["configurations"]["2d_concat"]
    assert entry["inherits_from"] == "2d" and "data_identifier" not in entry
    assert "nnUNetv2_train 998 2d_concat 0 -tr nnUNetTrainerDIN -p configureTestPlans" in capsys.readouterr().out
    manager = PlansManager(plans).get_configuration("2d_concat")
    assert manager.data_identifier == before["configurations"]["2d"]["data_identifier"]
    assert manager.network_arch_init_kwargs["fusion"] == "concat"
    assert manager.network_arch_init_kwargs["inputs"] == [0, 1]
    assert len(check_plans(plans, "2d_concat")) == 1


def test_what_others_added_meanwhile_stays(path, monkeypatch):
    """Several jobs of an array begin with a `configure` of their own."""
    here = configure_command.FileLock

    def quicker(*arguments):
        monkeypatch.setattr(configure_command, "FileLock", here)
        assert configure("--name", "2d_other", "--set", "fusion=concat") == 0
        return here(*arguments)

    monkeypatch.setattr(configure_command, "FileLock", quicker)
    assert configure("--name", "2d_input", "--set", "fusion=input") == 0
    assert {"2d_other", "2d_input"} <= json.loads(path.read_text())["configurations"].keys()


def test_settings_of_the_training(path, capsys):
    assert configure("--name", "2d_long", "--set-training", "num_epochs=150", "mirroring=false") == 0
    assert configure("--name", "2d_longer", "--from", "2d_long", "--set-training", "num_epochs=300") == 0
    plans = json.loads(path.read_text())
    assert plans["configurations"]["2d_long"]["training"] == {"num_epochs": 150, "mirroring": False}
    manager = PlansManager(plans).get_configuration("2d_longer")
    assert manager.configuration["training"] == {"num_epochs": 300, "mirroring": False}
    assert "nnUNetv2_train 998 2d_long 0" in capsys.readouterr().out


def test_another_batch(path):
    assert configure("--name", "2d_small", "--batch-size", "3") == 0
    manager = PlansManager(json.loads(path.read_text())).get_configuration("2d_small")
    assert manager.batch_size == 3 and manager.data_identifier.endswith("_2d")


def test_parameters_of_the_enhancement(path, capsys):
    """Every enhancement gets them, and data of its own."""
    assert configure("--name", "2d_smooth", "--set-enhancement", "smoothing=1.5") == 0
    plans = json.loads(path.read_text())
    new, old = (plans["configurations"][name] for name in ("2d_smooth", "2d"))
    assert new["enhancement"] == {**old["enhancement"], "smoothing": 1.5}
    assert new["data_identifier"] == f"{plans['plans_name']}_2d_smooth"
    assert "nnUNetv2_preprocess" in capsys.readouterr().out


def test_another_enhancement_gets_data_of_its_own_and_a_stream_for_each(path, capsys):
    assert configure("--name", "2d_twice", "--enhancement", "fuzzy", "fuzzy") == 0
    plans = json.loads(path.read_text())
    manager = PlansManager(plans).get_configuration("2d_twice")
    assert manager.data_identifier == "configureTestPlans_2d_twice"
    assert manager.network_arch_init_kwargs["versions"] == 3 and len(check_plans(plans, "2d_twice")) == 2
    assert manager.configuration["enhancement"][0] == plans["configurations"]["2d"]["enhancement"]
    assert "nnUNetv2_preprocess -d 998 -plans_name configureTestPlans -c 2d_twice" in capsys.readouterr().out
    # and back to one, inherited from the one with two
    assert configure("--name", "2d_once", "--from", "2d_twice", "--enhancement", "fuzzy") == 0
    manager = PlansManager(json.loads(path.read_text())).get_configuration("2d_once")
    assert "versions" not in manager.network_arch_init_kwargs


@pytest.fixture
def zero_dce_weights(dataset):
    path = weights_file(dataset.name)
    torch.save(DCENet().state_dict(), path)
    yield path
    path.unlink()


def test_paper_tables_leave_out_what_the_base_is_itself(path, capsys, monkeypatch):
    """Volumes with three stages have three DIFMs anyway."""
    monkeypatch.setattr(
        configurations, "PAPER_TABLES", {name: PAPER_TABLES[name] for name in ("2d_1_difm", "2d_3_difms")}
    )
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["fused_stages"] = 3
    path.write_text(json.dumps(plans))
    assert configure("--paper-tables", "--from", "3d_fullres") == 0
    assert "NOTE: 3d_fullres_3_difms is 3d_fullres itself." in capsys.readouterr().out
    planned = json.loads(path.read_text())["configurations"]
    assert "3d_fullres_1_difm" in planned and "3d_fullres_3_difms" not in planned


@pytest.mark.slow
def test_paper_tables(path, zero_dce_weights):
    assert configure("--paper-tables") == 0
    plans = json.loads(path.read_text())
    planned = plans["configurations"]
    for name, (network, methods) in PAPER_TABLES.items():
        manager = PlansManager(plans).get_configuration(name)
        expected = network_arguments(planned["2d"]["architecture"]["arch_kwargs"], network, methods)
        assert manager.network_arch_init_kwargs == expected
        assert [e["method"] for e in check_plans(plans, name)] == (methods or ["fuzzy"])
        shared = manager.data_identifier == planned["2d"]["data_identifier"]
        assert shared == (methods is None), "another enhancement, other data; another network, the same"
    # Patches of 40 x 40 do not fit an encoder that goes down to 1/32.
    assert planned["2d_swin"]["patch_size"] == [64, 64] and "patch_size" not in planned["2d_fct"]
    assert planned["2d_zero_dce"]["enhancement"]["weights"] == str(zero_dce_weights)


def test_paper_tables_of_volumes(path, capsys, monkeypatch):
    """What has no form for volumes is left out by name, and patches stay where the network pools as before."""
    some = {name: PAPER_TABLES[name] for name in ("2d_1_difm", "2d_swin", "2d_emcad", "2d_fuzzy_clahe")}
    monkeypatch.setattr(configurations, "PAPER_TABLES", some)
    assert configure("--paper-tables", "--from", "3d_fullres") == 0
    printed = capsys.readouterr().out
    for name in ("3d_fullres_swin", "3d_fullres_emcad"):
        assert f"NOTE: {name} has no form for volumes." in printed
    planned = json.loads(path.read_text())["configurations"]
    new = {name: planned[name] for name in planned if name.startswith("3d_fullres_")}
    assert new.keys() == {"3d_fullres_1_difm", "3d_fullres_fuzzy_clahe"}
    assert not any("patch_size" in entry for entry in new.values())
    arguments = planned["3d_fullres"]["architecture"]["arch_kwargs"]
    assert new["3d_fullres_1_difm"]["architecture"]["arch_kwargs"] == {**arguments, "fused_stages": 1}
    assert (
        configure(
            "--name", "flat", "--from", "3d_fullres", "--set", "strides=null", "kernel_sizes=null", "fusion_kernel=null"
        )
        == 1
    )
    assert "is for images with 2 axes, and the patches of '3d_fullres' have 3" in capsys.readouterr().err


@pytest.mark.slow
def test_paper_tables_again_adds_what_is_missing(path, zero_dce_weights, capsys, monkeypatch):
    """Zero-DCE's configuration waits for its weights; what is there is left, unless it is another one."""
    some = {name: PAPER_TABLES[name] for name in ("2d_concat", "2d_zero_dce")}
    monkeypatch.setattr(configurations, "PAPER_TABLES", some)
    zero_dce_weights.rename(zero_dce_weights.with_suffix(".away"))
    assert configure("--paper-tables") == 0
    assert "NOTE: 2d_zero_dce needs the weights of Zero-DCE: `nnunet-din train-zero-dce" in capsys.readouterr().out
    first = json.loads(path.read_text())["configurations"]
    assert "2d_zero_dce" not in first
    zero_dce_weights.with_suffix(".away").rename(zero_dce_weights)
    assert configure("--paper-tables") == 0
    second = json.loads(path.read_text())["configurations"]
    assert second.keys() - first.keys() == {"2d_zero_dce"}
    before = path.read_text()
    assert configure("--paper-tables") == 0 and path.read_text() == before
    assert configure("--name", "2d_concat", "--set", "fusion=input", "--force") == 0
    capsys.readouterr()
    assert configure("--paper-tables") == 1
    assert "have a configuration '2d_concat' already" in capsys.readouterr().err


@pytest.mark.slow
def test_nothing_is_written_in_a_dry_run_or_over_what_is_there(path, capsys):
    before = path.read_text()
    assert configure("--name", "2d_x", "--set", "fused_stages=2", "--dry-run") == 0
    assert '"fused_stages": 2' in capsys.readouterr().out and path.read_text() == before
    assert configure("--name", "2d", "--set", "fused_stages=2", "--force") == 1
    assert "cannot inherit from itself" in capsys.readouterr().err and path.read_text() == before
    assert configure("--name", "2d_x", "--set", "fused_stages=2") == 0
    before = path.read_text()
    assert configure("--name", "2d_x", "--set", "fused_stages=3") == 1
    assert "have a configuration '2d_x' already: choose another name, or --force" in capsys.readouterr().err
    assert path.read_text() == before
    assert configure("--name", "2d_x", "--set", "fused_stages=2") == 0
    assert "2d_x is there already." in capsys.readouterr().out and path.read_text() == before
    assert configure("--name", "2d_x", "--set", "fused_stages=3", "--force") == 0
    configuration = json.loads(path.read_text())["configurations"]["2d_x"]
    assert configuration["architecture"]["arch_kwargs"]["fused_stages"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "x", "--set", "fusion=sum"], "Unknown fusion 'sum'"),
        (["--name", "x", "--set", "depth=3"], "Unknown option of the network 'depth'. Known: encoder, "),
        (["--name", "x", "--set", "fusoin=concat"], "option of the network 'fusoin': did you mean 'fusion'? Known: "),
        (["--name", "x", "--set", "num_head=2"], "did you mean 'num_heads'?"),
        (["--name", "x", "--set", "fusion"], "--set takes KEY=VALUE"),
        (["--name", "x", "--from", "2d_y"], "no configuration '2d_y'"),
        (["--name", "x", "--enhancement", "magic"], "Unknown enhancement 'magic'"),
        (["--name", "x", "--set-enhancement", "magic=1"], "unexpected keyword argument 'magic'"),
        (["--name", "x", "--set-enhancement", "smoothing=-1"], "The smoothing must be positive, got -1"),
        (
            ["--name", "x", "--set-training", "epochs=3"],
            "did you mean 'num_epochs'?",
        ),
        (["--name", "x", "--set-training", "num_epochs=0"], "num_epochs must be a whole number from 1 on, got 0"),
        (["--name", "x", "--set-training", "num_epochs=1.5"], "got 1.5"),
        (["--name", "x", "--set-training", "mirroring=1"], "mirroring must be true or false, got 1"),
        (["--name", "x", "--set-training", "initial_lr=true"], "got true"),
        (["--name", "x", "--set-training", "warmup=half"], 'from 0 to 1, got "half"'),
        (["--name", "x", "--set-training", "warmup"], "--set-training takes KEY=VALUE"),
        (["--name", "x", "--batch-size", "0"], "A batch holds 1 patch or more, not 0"),
        ([], "Give either --name"),
        (["--paper-tables", "--set", "fusion=concat"], "go with --name"),
    ],
)
def test_what_is_refused(path, capsys, arguments, message):
    before = path.read_text()
    assert configure(*arguments) == 1
    assert message in capsys.readouterr().err
    assert path.read_text() == before


def test_plans_of_another_planner(path, capsys):
    plans = json.loads(path.read_text())
    del plans["configurations"]["2d"]["enhancement"]
    path.write_text(json.dumps(plans))
    assert configure("--name", "x", "--set", "fusion=concat") == 1
    assert "Configuration '2d' is not one of a DIN planner" in capsys.readouterr().err


def test_plans_that_are_not_there(dataset, capsys):
    assert main(["configure", "-d", "998", "-p", "noPlans", "--name", "x"]) == 1
    message = capsys.readouterr().err
    assert "noPlans.json does not exist. Beside it: " in message and "nnUNetDINAttoPlans" in message
