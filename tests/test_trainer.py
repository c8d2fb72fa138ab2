"""The trainers: hyper-parameters, one step of training, augmentation, resuming, bad plans."""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
import time
from pathlib import Path

import nnunetv2
import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities import find_class_by_name
from torch import nn

from nnunet_dataset import SMALL_NETWORK, preprocess
from nnunet_din.diagnosis.measurement import TrainingStep
from nnunet_din.enhancement import enhance
from nnunet_din.network import PRESETS
from nnunet_din.nnunet.training_settings import SETTINGS
from nnunet_din.plugin import CLASSES
from nnunet_din.trainers.din_trainer import nnUNetTrainerDIN, rotated_extent
from nnunet_din.trainers.enhance_augmented import EnhanceAugmented

TRAINERS = [name for name in CLASSES if name.startswith("nnUNetTrainerDIN")]
CPU = torch.device("cpu")


def find_trainer(name):
    """As nnUNetv2_train does it, in every supported release."""
    folder = str(Path(nnunetv2.__file__).parent / "training" / "nnUNetTrainer")
    return find_class_by_name.recursive_find_python_class(folder, name, "nnunetv2.training.nnUNetTrainer")


@pytest.fixture
def make(dataset, plans):
    """Builds a trainer by nnU-Net's own look-up, for plans changed by the test."""

    def build(name="nnUNetTrainerDIN", change=lambda plans: None, configuration="2d", **attributes):
        own = copy.deepcopy(plans)
        own["configurations"]["2d"]["architecture"]["arch_kwargs"]["decoder_channels"] = 16
        change(own)
        cls = find_trainer(name)
        trainer = cls(own, configuration, 0, dataset.dataset_json, CPU)
        for key, value in attributes.items():
            setattr(trainer, key, value)
        return trainer

    return build


def batch(trainer, seed=0):
    """A random batch, its target as nnU-Net's loader gives it: a list with deep supervision."""
    generator = torch.Generator().manual_seed(seed)
    size = trainer.configuration_manager.patch_size
    data = torch.randn(2, 2, *size, generator=generator)
    target = torch.randint(0, 4, (2, 1, *size), generator=generator).float()
    return {"data": data, "target": [target] if trainer.enable_deep_supervision else target}


@pytest.mark.parametrize("name", TRAINERS)
def test_class_attributes_are_what_the_trainer_uses(make, name):
    trainer = make(name)
    cls = type(trainer)
    keys = ("weight_decay", "num_epochs", "num_iterations_per_epoch", "enable_deep_supervision", "save_every")
    assert all(getattr(trainer, key) == getattr(cls, key) for key in keys)
    assert trainer.initial_lr == (cls.initial_lr or 5e-4)
    assert trainer.my_init_kwargs.keys() == {"plans", "configuration", "fold", "dataset_json", "device"}


def test_plans_have_the_last_word_on_the_training(make, monkeypatch):
    settings = {"num_epochs": 7, "initial_lr": 1e-3, "spatial_only": True, "p_rotation": 0.25, "max_rotation": None}

    def change(plans):
        plans["configurations"]["2d"]["training"] = settings

    trainer = make("nnUNetTrainerDIN_50epochs", change)
    assert {key: getattr(trainer, key) for key in settings} == settings
    plain = make()
    for each, angle, p in ((trainer, 180, 0.25), (plain, 20, 0.2)):
        rotation, *_ = each.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        assert np.rad2deg(rotation[1]) == pytest.approx(angle)
        compose = each.get_training_transforms((40, 40), rotation, None, (0, 1), False)
        spatial = [t for t in compose.transforms if isinstance(t, SpatialTransform)]
        assert [t.p_rotation for t in spatial] == [p]
        assert any(isinstance(t, EnhanceAugmented) for t in compose.transforms) == (each is plain)
    lines = []
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)
    monkeypatch.setattr(trainer, "print_to_log_file", lambda *args, **kwargs: lines.append(" ".join(map(str, args))))
    trainer.network = nn.Module()
    trainer.network.origin = None
    trainer.on_train_start()
    assert any("Set by the plans: num_epochs 7, initial_lr 0.001" in line for line in lines)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"epochs": 3},
            "'2d' of nnUNetDINAttoPlans: Unknown setting of the training 'epochs': did you mean",
        ),
        ({"weight_dice": -1}, "weight_dice must be a number from 0 on, got -1"),
        ([150], "must hold names and values"),
    ],
)
def test_settings_of_the_plans_that_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(change=lambda plans: plans["configurations"]["2d"].update(training=settings))


def test_every_setting_of_the_plans_is_the_trainers():
    assert all(SETTINGS[key].takes(getattr(nnUNetTrainerDIN, key)) for key in SETTINGS)
    assert set(SETTINGS) <= set(vars(nnUNetTrainerDIN))


@pytest.mark.parametrize(("encoder", "expected"), [("convnext_atto", 5e-4), ("plain_atto", 1e-3)])
def test_the_learning_rate_is_the_encoders(make, encoder, expected):
    def change(plans):
        arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
        arguments.pop("layer_scale", None)
        arguments["encoder"] = encoder

    trainer = make(change=change)
    trainer.network = nn.Linear(2, 2)
    optimizer, _ = trainer.configure_optimizers()
    assert trainer.initial_lr == expected
    assert {group["initial_lr"] for group in optimizer.param_groups} == {expected}


def test_the_papers_hyper_parameters():
    paper, ours = find_trainer("nnUNetTrainerDIN_paper"), nnUNetTrainerDIN
    assert (paper.initial_lr, paper.warmup, paper.num_epochs, paper.num_iterations_per_epoch) == (1e-4, 0, 300, 250)
    assert not paper.enable_deep_supervision
    assert (paper.weight_ce, paper.weight_dice, paper.weight_boundary) == (0.3, 0.7, 1.0)
    assert (ours.initial_lr, ours.warmup, ours.weight_decay, ours.num_epochs) == (None, 0.05, 0.05, 300)
    lengths = {n: find_trainer(f"nnUNetTrainerDIN_{n}epochs").num_epochs for n in (5, 50, 100)}
    assert lengths == {5: 5, 50: 50, 100: 100}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnUNetTrainerDIN_paper", "nnUNetTrainerDIN_noDeepSupervision"])
def test_trainers_without_auxiliary_outputs_have_the_network_of_prediction(make, name):
    trainer = make(name)
    trainer.initialize()
    assert trainer.network.auxiliary_heads is None
    assert np.isfinite(trainer.train_step(batch(trainer))["loss"])


@pytest.mark.slow
def test_auxiliary_outputs_are_of_training_only(make, tmp_path):
    """nnU-Net's prediction builds the network without them and loads the checkpoint: the same segmentation."""
    trainer = make()
    trainer.initialize()
    trainer.train_step(batch(trainer))
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    x = batch(trainer)["data"]
    trainer.network.eval()
    with torch.no_grad():
        outputs = trainer.network(x)
    assert len(outputs) == 5
    network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 4, False)
    assert network.auxiliary_heads is None
    network.load_state_dict(torch.load(tmp_path / "checkpoint.pth", weights_only=False)["network_weights"])
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network(x), outputs[0], rtol=0, atol=0)
    trainer.set_deep_supervision_enabled(False)
    assert torch.is_tensor(trainer.network(x))


@pytest.mark.filterwarnings("ignore:DIN's auxiliary outputs")
@pytest.mark.parametrize("supervised", [False, True])
def test_network_by_the_arguments_of_other_programs(supervised):
    """MONAI's, and of programs that copied an older predictor of nnU-Net, by position and by name."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    name, kwargs = "nnunet_din.network.DualInteractionNetwork", {**PRESETS["fast"], "decoder_channels": 8}
    with torch.device("meta"):
        networks = [
            nnUNetTrainerDIN.build_network_architecture(name, kwargs, [], 1, 3, enable_deep_supervision=supervised),
            nnUNetTrainerDIN.build_network_architecture(
                architecture_class_name=name,
                arch_init_kwargs=kwargs,
                arch_init_kwargs_req_import=[],
                num_input_channels=1,
                num_output_channels=3,
                enable_deep_supervision=supervised,
            ),
            get_network_from_plans(name, kwargs, [], 1, 3, deep_supervision=supervised),
        ]
    for network in networks:
        assert (network.auxiliary_heads is not None) == network.deep_supervision == supervised


def test_validation_computes_as_prediction_does():
    """Both are nnU-Net's: in its autocast, whatever training computes in."""
    assert nnUNetTrainerDIN.perform_actual_validation is nnUNetTrainer.perform_actual_validation


@pytest.mark.slow
def test_a_training_from_before_the_auxiliary_outputs_goes_on(make, tmp_path):
    before = make(enable_deep_supervision=False)
    before.initialize()
    before.train_step(batch(before))
    before.save_checkpoint(str(tmp_path / "before.pth"))
    trainer = make()
    trainer.load_checkpoint(checkpoint=str(tmp_path / "before.pth"))  # the argument's name after nnU-Net 2.8
    assert not trainer.enable_deep_supervision and trainer.network.auxiliary_heads is None
    before.current_epoch = trainer.current_epoch
    for each in (before, trainer):
        each.on_train_epoch_start()
        each.train_step(batch(each, seed=1))
    for key, value in before.network.state_dict().items():
        assert torch.equal(value, trainer.network.state_dict()[key]), key


def test_one_training_step_reaches_every_parameter(make):
    trainer = make(warmup=0.0)
    trainer.initialize()
    trainer.network.train()
    before = {n: p.detach().clone() for n, p in trainer.network.named_parameters()}
    loss = trainer.train_step(batch(trainer))["loss"]
    assert np.isfinite(loss)
    for name, p in trainer.network.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all(), f"no finite gradient: DDP would hang on {name}"
        assert not torch.equal(p, before[name]), f"{name} did not move"
    assert trainer.validation_step(batch(trainer))["tp_hard"].shape == (3,)


@pytest.mark.slow
def test_loss_falls_when_one_batch_is_repeated(make):
    trainer = make(initial_lr=1e-3, warmup=0.0)
    trainer.initialize()
    data = batch(trainer)
    data["target"] = [(data["data"][:, :1] > 0.5).float()]
    losses = [float(trainer.train_step(data)["loss"]) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_the_step_that_doctor_tries_and_benchmarks_time_is_the_trainers(make):
    """Same loss and same clipped gradients; fails if one of them computes, clips or weights anything else."""

    def change(plans):
        plans["configurations"]["2d"].update(patch_size=[32, 32], batch_dice=True)
        plans["configurations"]["2d"]["architecture"]["arch_kwargs"] = dict(SMALL_NETWORK)

    trainer = make(change=change, boundary_ramp=0.0)
    trainer.initialize()
    network = copy.deepcopy(trainer.network)
    data = batch(trainer)
    step = TrainingStep(network, data["data"], data["target"][0], trainer.amp_dtype)
    loss, expected = step(), trainer.train_step(data)["loss"]
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for (name, ours), theirs in zip(network.named_parameters(), trainer.network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_vectors_are_not_decayed(make):
    trainer = make()
    trainer.initialize()
    decayed, free = trainer.optimizer.param_groups
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert decayed["weight_decay"] == 5e-2 and free["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim <= 1 for p in free["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(list(trainer.network.parameters()))


def test_learning_rate_comes_with_warm_up_and_decay(make):
    trainer = make(num_epochs=100)
    trainer.network = torch.nn.Linear(2, 2)
    optimizer, scheduler = trainer.configure_optimizers()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    rates = []
    for epoch in range(100):
        scheduler.step(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == 0 and rates[1] == pytest.approx(1e-4, rel=0.02) and rates[5] == max(rates)
    assert rates[5] == pytest.approx(5e-4 * 0.95**0.9)


@pytest.mark.parametrize(("warmup", "factors"), [(0.0, [1.0] * 10), (0.4, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1])])
def test_learning_rate_and_boundary_weight_follow_the_iterations(make, warmup, factors):
    trainer = make(
        "nnUNetTrainerDIN_noDeepSupervision",
        num_epochs=5,
        num_iterations_per_epoch=2,
        warmup=warmup,
        initial_lr=3e-4,
        boundary_ramp=0.5,
    )
    trainer.initialize()
    rates, weights, logged = [], [], []
    trainer.network = torch.nn.Conv2d(2, 4, 1)  # the schedule does not depend on the network
    for trainer.current_epoch in range(5):
        trainer.logger.log("epoch_start_timestamps", 0, trainer.current_epoch)
        trainer.on_train_epoch_start()
        logged.append(trainer.optimizer.param_groups[0]["lr"])
        for _ in range(2):
            trainer.train_step(batch(trainer))
            weights.append(trainer.loss.weight_boundary)
            rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([3e-4 * factor * (1 - i / 10) ** 0.9 for i, factor in enumerate(factors)])
    assert logged == rates[::2]
    assert weights == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1])


def test_log_says_how_much_memory_a_gpu_needed(make, monkeypatch):
    """`nnunet-din leaderboard` reads it there."""
    trainer = make()
    trainer.device = torch.device("cuda")
    lines = []
    monkeypatch.setattr(trainer, "print_to_log_file", lambda *text, **_: lines.append(" ".join(map(str, text))))
    monkeypatch.setattr(nnUNetTrainer, "on_epoch_end", lambda self: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3_254_000_000)
    trainer.on_epoch_end()
    assert lines == ["Peak GPU memory: 3.25 GB"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nnUNetTrainerDIN", (1.0, True)),
        ("nnUNetTrainerDIN_noBoundaryLoss", (0.0, None)),
        ("nnUNetTrainerDIN_printedBoundaryLoss", (1.0, False)),
    ],
)
def test_boundary_loss_variants(make, name, expected):
    trainer = make(name)
    loss = trainer._build_loss().loss
    assert (loss.weight_boundary, loss.boundary and loss.boundary.normalized) == expected


def transforms(cls, mask=(False,), **kwargs):
    return cls.get_training_transforms(
        (40, 40),
        (-np.pi, np.pi),
        None,
        (0, 1),
        False,
        use_mask_for_norm=list(mask),
        foreground_labels=[1, 2, 3],
        **kwargs,
    )


def test_paper_augmentation_is_rotation_and_flips():
    cls = find_trainer("nnUNetTrainerDIN_paper")
    kinds = [type(t).__name__ for t in transforms(cls).transforms]
    assert (
        kinds[:2] == ["SpatialTransform", "MirrorTransform"] and kinds[2].startswith("RemoveLabel") and len(kinds) == 3
    )
    spatial = transforms(cls).transforms[0]
    assert (spatial.p_rotation, spatial.p_scaling, spatial.p_elastic_deform) == (0.5, 0, 0)
    assert spatial.rotation == (-np.pi, np.pi)


@pytest.mark.parametrize("name", ["nnUNetTrainerDIN_demo", "nnUNetTrainerDIN_noMirroring"])
def test_without_mirroring_nothing_is_flipped(make, name):
    trainer = make(name)
    *_, mirror_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert mirror_axes is None and trainer.inference_allowed_mirroring_axes is None


def test_the_demo_keeps_the_orientation(make):
    trainer = make("nnUNetTrainerDIN_demo")
    *_, mirror_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    image = torch.arange(1600.0).reshape(1, 40, 40)
    pipeline = type(trainer).get_training_transforms((40, 40), (-np.pi, np.pi), None, mirror_axes, False)
    for _ in range(10):
        out = pipeline(image=torch.cat((image, image)), segmentation=torch.zeros(1, 40, 40, dtype=torch.int16))
        torch.testing.assert_close(out["image"][:1], image)


@pytest.mark.parametrize(("name", "degrees"), [("nnUNetTrainerDIN", 20.0), ("nnUNetTrainerDIN_nnUNetDA", 180.0)])
def test_rotation_stays_within_its_angle(make, name, degrees):
    rotation, *_ = make(name).configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    np.testing.assert_allclose(np.rad2deg(rotation), (-degrees, degrees))


@pytest.mark.parametrize("size", [(128, 112), (40, 160), (64, 64)])
@pytest.mark.parametrize("angle", [0.0, 0.35, 1.0, np.pi])
def test_rotated_patches_lie_within_what_is_loaded(size, angle):
    corners = np.array([[1, 1, -1, -1], [1, -1, 1, -1]]) * np.array(size)[:, None] / 2
    turned = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ corners for a in np.linspace(0, angle, 999)]
    needed = 2 * np.abs(turned).max(axis=(0, 2))
    extent = np.array(rotated_extent(size, angle))
    assert (extent >= needed - 1e-6).all() and (extent <= needed + 1.001).all()


def test_the_paper_mirrors(make):
    trainer = make()
    *_, mirror_axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert mirror_axes == trainer.inference_allowed_mirroring_axes == (0, 1)


def test_nnunet_augmentation_is_nnunets():
    ours, stock = (transforms(cls).transforms for cls in (find_trainer("nnUNetTrainerDIN_nnUNetDA"), nnUNetTrainer))
    assert [type(t).__name__ for t in ours] == [type(t).__name__ for t in stock]
    spatial = next(t for t in stock if type(t).__name__ == "SpatialTransform")
    own = next(t for t in ours if type(t).__name__ == "SpatialTransform")
    assert (own.p_rotation, own.p_scaling) == (spatial.p_rotation, spatial.p_scaling)


def test_enhanced_channels_are_those_of_the_augmented_originals(make):
    """Also of a second enhancement; where the patch ends beside the image, all channels are 0."""
    enhancements = [{"method": "fuzzy"}, {"method": "he"}]

    def change(plans):
        plans["configurations"]["2d"] |= {"enhancement": enhancements, "training": {"enhance_augmented": True}}
        plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["versions"] = 3

    trainer = make("nnUNetTrainerDIN_nnUNetDA", change)
    pipeline = trainer.get_training_transforms((40, 40), (-0.2, 0.2), None, (0, 1), False)
    generator = torch.Generator().manual_seed(0)
    image = torch.zeros(3, 40, 40)
    image[:, 4:30, :36] = torch.randn(3, 26, 36, generator=generator)
    seen = 0
    for _ in range(10):
        out = pipeline(image=image.clone(), segmentation=torch.zeros(1, 40, 40, dtype=torch.int16))["image"]
        inside = out[1:].any(0).numpy()
        for channel, arguments in zip(out[1:].numpy(), enhancements, strict=True):
            expected = enhance(out[:1, None].numpy(), mask=inside[None], **arguments)[0, 0]
            np.testing.assert_allclose(channel[inside], expected[inside], atol=1e-5)
        seen += 0.2 < inside.mean() < 0.9
    assert seen == 10


def test_enhancement_of_a_patch_that_is_the_image_is_that_of_preprocessing():
    arguments = {"method": "fuzzy", "color": True}
    picture = np.random.default_rng(0).normal(size=(3, 1, 24, 32)).astype(np.float32)
    stored = torch.from_numpy(np.concatenate([picture, enhance(picture, **arguments)])[:, 0])
    out = EnhanceAugmented([], [arguments])(image=stored.clone(), segmentation=torch.zeros(1, 24, 32))["image"]
    torch.testing.assert_close(out, stored)
    volume = np.random.default_rng(0).normal(size=(1, 6, 10, 12)).astype(np.float32)
    arguments = {"method": "fuzzy", "volumetric": True}
    stored = torch.from_numpy(np.concatenate([volume, enhance(volume, **arguments)]))
    out = EnhanceAugmented([], [arguments])(image=stored.clone(), segmentation=torch.zeros(1, 6, 10, 12))["image"]
    torch.testing.assert_close(out, stored)


@pytest.mark.parametrize("name", ["nnUNetTrainerDIN", "nnUNetTrainerDIN_nnUNetDA"])
@pytest.mark.parametrize("setting", [True, False])
def test_enhanced_channels_are_made_anew_where_intensities_are_augmented_and_the_plans_say_so(make, name, setting):
    training = {"enhance_augmented": setting, "spatial_only": name == "nnUNetTrainerDIN"}
    trainer = make(name, lambda plans: plans["configurations"]["2d"].update(training=training))
    pipeline = trainer.get_training_transforms((40, 40), (-0.2, 0.2), None, None, False)
    kinds = [type(t).__name__ for t in pipeline.transforms]
    assert kinds[0] == "SpatialTransform"
    assert (kinds[1] == "EnhanceAugmented") == ("EnhanceAugmented" in kinds) == (setting and not trainer.spatial_only)


@pytest.mark.parametrize("name", ["nnUNetTrainerDIN", "nnUNetTrainerDIN_nnUNetDA"])
def test_mask_is_applied_to_originals_and_enhanced(name):
    pipeline = transforms(find_trainer(name), mask=(True, False))
    mask = next(t for t in pipeline.transforms if type(t).__name__ == "MaskImageTransform")
    assert list(mask.apply_to_channels) == [0, 2]


def test_both_images_are_moved_together():
    pipeline = transforms(find_trainer("nnUNetTrainerDIN_paper"))
    image = torch.rand(1, 40, 40)
    seg = (image > 0.5).to(torch.int16)
    for _ in range(10):
        out = pipeline(image=torch.cat((image, image)), segmentation=seg)
        torch.testing.assert_close(out["image"][0], out["image"][1])


@pytest.mark.slow
def test_training_and_resuming_are_bit_exact(make, dataset, tmp_path):
    """Two epochs in one go, and one epoch, save, load into a new trainer, one more epoch: same weights, optimizer and
    schedule.
    """

    def epoch(trainer):
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        trainer.on_train_epoch_end(
            [trainer.train_step(batch(trainer, seed=10 * trainer.current_epoch + i)) for i in range(2)]
        )
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            trainer.on_validation_epoch_end([trainer.validation_step(batch(trainer))])
        trainer.on_epoch_end()

    torch.manual_seed(0)
    straight = make("nnUNetTrainerDIN_demo")
    straight.initialize()
    epoch(straight)
    checkpoint = straight.output_folder + "/checkpoint_latest.pth"
    kept = tmp_path / "kept.pth"
    shutil.copy(checkpoint, kept)
    epoch(straight)

    resumed = make("nnUNetTrainerDIN_demo")
    resumed.load_checkpoint(str(kept))
    assert resumed.current_epoch == 1
    epoch(resumed)
    for key, value in straight.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[key]), key
    a, b = straight.optimizer.state_dict(), resumed.optimizer.state_dict()
    assert a["param_groups"] == b["param_groups"]
    for index, state in a["state"].items():
        assert all(torch.equal(v, b["state"][index][k]) for k, v in state.items())


@pytest.mark.slow
def test_a_seed_gives_the_same_weights_with_and_without_an_interruption(make, dataset, monkeypatch, tmp_path):
    """By nnU-Net's own loaders; another seed gives others. Fails if anything draws random numbers before it is set."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")

    first_epoch = tmp_path / "checkpoint.pth"

    def train(seed, checkpoint=None):
        def change(plans):
            configuration = plans["configurations"]["2d"]
            configuration["patch_size"] = [32, 32]
            configuration["architecture"]["arch_kwargs"] = dict(SMALL_NETWORK)
            configuration["training"] = {"seed": seed, "num_iterations_per_epoch": 2, "num_val_iterations_per_epoch": 1}

        trainer = make(change=change, num_epochs=2, save_every=1)
        if checkpoint:
            trainer.load_checkpoint(str(checkpoint))
        trainer.run_training()
        return torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)["network_weights"]

    on_epoch_end = nnUNetTrainerDIN.on_epoch_end

    def keep_the_checkpoint(self):
        on_epoch_end(self)
        if self.current_epoch == 1:
            shutil.copy(Path(self.output_folder) / "checkpoint_latest.pth", first_epoch)

    monkeypatch.setattr(nnUNetTrainerDIN, "on_epoch_end", keep_the_checkpoint)
    first = train(seed=0)
    random.seed(9)
    np.random.seed(9)  # noqa: NPY002 - what the seed has to set
    torch.manual_seed(9)
    for other in (train(seed=0), train(seed=0, checkpoint=first_epoch)):
        assert all(torch.equal(value, other[key]) for key, value in first.items())
    assert not all(torch.equal(value, first[key]) for key, value in train(seed=1).items())


def test_a_seed_with_workers_is_warned_of(make, monkeypatch):
    lines = []
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda self: None)
    trainer = make(seed=3)
    trainer.network = nn.Module()
    trainer.network.origin = None
    monkeypatch.setattr(trainer, "print_to_log_file", lambda *args, **kwargs: lines.append(" ".join(map(str, args))))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    trainer.on_train_start()
    assert not lines
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    trainer.on_train_start()
    assert lines == [line for line in lines if "seed 3" in line and "nnUNet_n_proc_DA=0" in line] != []


def test_one_epoch_of_nnunets_loop_on_the_data_set(make, dataset, monkeypatch):
    """nnU-Net's own loaders and loop, end to end: data reach the network with both images, a checkpoint comes out."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # load in this process
    trainer = make(num_epochs=1, num_iterations_per_epoch=2, num_val_iterations_per_epoch=1)
    trainer.run_training()
    checkpoint = torch.load(trainer.output_folder + "/checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == "nnUNetTrainerDIN" and checkpoint["init_args"]["configuration"] == "2d"
    assert len(trainer.logger.get_value("train_losses", step=None)) == 1


@pytest.mark.slow
def test_pretrained_encoders_are_loaded_for_training_only(make, tmp_path):
    import timm

    weights = timm.create_model("convnext_atto").state_dict()
    path = tmp_path / "atto.pth"
    torch.save(weights, path)

    def change(plans):
        plans["configurations"]["2d"]["pretrained_encoder"] = str(path)

    trainer = make("nnUNetTrainerDIN_pretrained", change)
    trainer.initialize()
    key = "stages.2.blocks.3.conv_dw.weight"
    assert torch.equal(trainer.network.encoders[1].state_dict()[key], weights[key])
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    path.unlink()
    again = make("nnUNetTrainerDIN_pretrained", change)
    again.load_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert torch.equal(again.network.encoders[0].state_dict()[key], weights[key])


# ---- bad input ----


def test_plans_without_second_channel_name_the_command(make, dataset):
    def change(plans):
        del plans["configurations"]["2d"]["enhancement"]

    with pytest.raises(
        ValueError, match=f"nnUNetv2_plan_and_preprocess -d {dataset.name} -pl nnUNetPlannerDINFast -c 2d"
    ):
        make(change=change)


def test_a_cascade_is_refused(make):
    def change(plans):
        plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}

    with pytest.raises(ValueError, match="is a cascade: it takes the segmentation of '3d_lowres' as input"):
        make(configuration="3d_cascade_fullres", change=change)


def small_volumes(plans):
    """The least network and patch with which 3d_fullres can be trained, pooled in-plane first."""
    data = plans["configurations"]["2d"]["data_identifier"]  # as good as any
    plans["configurations"]["3d_fullres"].update(patch_size=[4, 32, 32], batch_size=2, data_identifier=data)
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] = {
        "encoder": "plain_atto",
        "decoder_channels": 16,
        "upsampling": "pixel_shuffle",
        "strides": [[1, 2, 2], [2, 2, 2], [1, 2, 2], [1, 1, 1]],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
        "fused_stages": 2,
    }


def test_a_step_on_volumes(make):
    trainer = make("nnUNetTrainerDIN", small_volumes, "3d_fullres")
    trainer.initialize()
    assert trainer.loss.loss.boundary.pooled_axes == (1, 2)
    trainer.lr_scheduler.step(5)
    trainer.optimizer.zero_grad()
    data = batch(trainer)
    output = trainer.network(data["data"])
    assert [tuple(o.shape[2:]) for o in output] == [(4, 32, 32), (4, 16, 16), (2, 8, 8)]
    loss = trainer.loss(output, data["target"])
    loss.backward()
    assert torch.isfinite(loss) and all(
        p.grad is not None and p.grad.isfinite().all() for p in trainer.network.parameters()
    )


@pytest.mark.parametrize(("patch", "extent"), [([4, 32, 32], [4, 42, 42]), ([32, 32, 32], None)])
def test_volumes_are_turned_within_20_degrees(make, patch, extent):
    """In the plane of thick slices, else about every axis; what is loaded covers what is turned."""

    def change(plans):
        small_volumes(plans)
        plans["configurations"]["3d_fullres"]["patch_size"] = patch

    trainer = make("nnUNetTrainerDIN", change, "3d_fullres")
    rotation, dummy_2d, initial, mirrored = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert np.rad2deg(rotation[1]) == pytest.approx(20) and dummy_2d is (extent is not None) and mirrored == (0, 1, 2)
    assert list(initial) == extent if extent else all(32 < edge <= 32 * 3**0.5 for edge in initial)


def test_patch_that_is_no_multiple_of_eight_is_refused(make):
    def change(plans):
        plans["configurations"]["2d"]["patch_size"] = [44, 40]

    with pytest.raises(ValueError, match=r"patch size \[44, 40\].*Set it to \[48, 40\]"):
        make(change=change)


@pytest.mark.parametrize(
    ("key", "match"), [("encoder", "Unknown encoder 'nonsense'"), ("enhancement", "Unknown enhancement 'nonsense'")]
)
def test_unknown_names_in_the_plans(make, key, match):
    def change(plans):
        config = plans["configurations"]["2d"]
        if key == "encoder":
            config["architecture"]["arch_kwargs"]["encoder"] = "nonsense"
        else:
            config["enhancement"]["method"] = "nonsense"

    with pytest.raises(ValueError, match=match):
        make(change=change).initialize()


@pytest.mark.slow
def test_checkpoint_of_another_preset_is_refused(make, tmp_path):
    other = make()
    other.initialize()
    other.save_checkpoint(str(tmp_path / "other.pth"))

    def change(plans):
        plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["encoder"] = "convnext_femto"

    with pytest.raises(RuntimeError, match="other.pth: These weights belong to another network"):
        make(change=change).load_checkpoint(str(tmp_path / "other.pth"))


def test_stock_trainers(make, plans, dataset):
    """Plans of DIN train with nnU-Net's trainers without deep supervision; with it, a warning says what to use."""
    with pytest.warns(UserWarning, match="-tr nnUNetTrainerDIN"), pytest.raises(KeyError, match="strides"):
        nnUNetTrainer(copy.deepcopy(plans), "2d", 0, dataset.dataset_json, CPU).initialize()
    cls = find_trainer("nnUNetTrainerNoDeepSupervision")
    trainer = cls(copy.deepcopy(plans), "2d", 0, dataset.dataset_json, CPU)
    trainer.initialize()
    assert np.isfinite(trainer.train_step(batch(trainer))["loss"])


def test_plans_are_json(plans):
    assert json.loads(json.dumps(plans)) == plans


# ---- the benchmark trainer ----


def test_benchmark_trainer_tells_waiting_from_working(make, tmp_path, monkeypatch):
    trainer = make("nnUNetTrainerDIN_benchmark", num_iterations_per_epoch=4, output_folder=str(tmp_path))
    item = batch(trainer)

    def slow_item():
        time.sleep(0.05)
        return item

    def train_step(self, data):
        time.sleep(0.15)
        return {"loss": np.array(1.0)}

    trainer.initialize()
    trainer.log_file = str(tmp_path / "log.txt")
    monkeypatch.setattr("nnunet_din.trainers.din_trainer.nnUNetTrainerDIN.train_step", train_step)
    trainer.on_train_epoch_start()
    trainer.on_train_epoch_end([trainer.train_step(slow_item()) for _ in range(4)])
    assert trainer.timing["share_waiting_for_data"] == pytest.approx(0.25, abs=0.1)
    assert trainer.timing["images_per_second"] == pytest.approx(trainer.configuration_manager.batch_size / 0.2, rel=0.3)
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    assert not (tmp_path / "checkpoint.pth").exists()


# ---- several enhancements, and L_bnd with other networks ----


def two_enhancements(plans):
    config = plans["configurations"]["2d"]
    config["enhancement"] = [config["enhancement"], {**config["enhancement"], "m": 0, "n": 0}]
    config["architecture"]["arch_kwargs"]["versions"] = 3


@pytest.mark.slow
def test_several_enhancements_are_trained(make):
    trainer = make(change=two_enhancements)
    trainer.initialize()
    data = batch(trainer)
    data["data"] = torch.cat((data["data"], data["data"][:, 1:]), dim=1)
    assert np.isfinite(trainer.train_step(data)["loss"])
    transforms = trainer.get_training_transforms(
        (40, 40), (0, 0), None, None, False, use_mask_for_norm=[True], foreground_labels=[1]
    ).transforms
    masking = next(t for t in transforms if "Mask" in type(t).__name__)
    assert list(masking.apply_to_channels) == [0, 1, 2]


def test_network_and_enhancements_must_agree(make):
    def change(plans):
        two_enhancements(plans)
        del plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["versions"]

    with pytest.raises(
        ValueError, match="2 enhancements, so that there are 3 versions.*its network takes 2: set `versi"
    ):
        make(change=change)


@pytest.fixture(scope="module")
def stock_plans(dataset):
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    plans = ExperimentPlanner(dataset.name, plans_name="stockLossTestPlans").plan_experiment()
    preprocess(dataset.name, plans)
    return {**plans, "continue_training": False}


@pytest.mark.slow
def test_boundary_loss_with_nnunets_own_network(dataset, stock_plans):
    """nnU-Net's loss plus L_bnd of the full-resolution output, ramped up; deep supervision stays."""
    cls = find_trainer("nnUNetTrainerBoundaryLoss")
    trainer = cls(copy.deepcopy(stock_plans), "2d", 0, dataset.dataset_json, CPU)
    trainer.num_epochs, trainer.num_iterations_per_epoch = 1, 10
    trainer.initialize()
    data = batch(trainer)
    data["data"] = data["data"][:, :1]
    output = trainer.network(data["data"])
    scales = [[1.0, 1.0], *trainer._get_deep_supervision_scales()[1:]]
    data["target"] = [
        torch.nn.functional.interpolate(data["target"][0], size=o.shape[-2:], mode="nearest") for o in output
    ]
    assert isinstance(output, (list, tuple)) and len(scales) == len(output)
    own, whole = trainer.loss.loss(output, data["target"]), trainer.loss(output, data["target"])
    from nnunet_din.losses import DINLoss

    expected = DINLoss(weight_ce=0, weight_dice=0)(output[0], data["target"][0])
    torch.testing.assert_close(whole - own, expected, rtol=1e-4, atol=1e-6)
    weights = []
    for _ in range(4):
        trainer.train_step(data)
        weights.append(trainer.loss.boundary.weight_boundary)
    assert weights == pytest.approx([0, 0.5, 1, 1])


def test_boundary_loss_of_volumes(dataset, stock_plans):
    plans = copy.deepcopy(stock_plans)
    trainer = find_trainer("nnUNetTrainerBoundaryLoss")(plans, "3d_fullres", 0, dataset.dataset_json, CPU)
    arguments = trainer.configuration_manager.network_arch_init_kwargs
    loss = trainer._build_loss()
    pooled = next(stride for stride in arguments["strides"] if max(stride) > 1)
    assert loss.boundary.boundary.pooled_axes == tuple(axis for axis, stride in enumerate(pooled) if stride > 1)
    assert len(pooled) == 3
