"""What a GPU has to answer, the important questions first, in nine minutes of one process.

    PYTHONPATH=. python benchmarks/gpu.py                      asks everything, writes benchmarks/gpu.json
    PYTHONPATH=. python benchmarks/gpu.py --tiny --device cpu  tries the script itself
    PYTHONPATH=. python benchmarks/gpu.py table                prints the table of docs/gpu.md from benchmarks/gpu.json

Every figure is printed and written as soon as it is there. A figure that fails is recorded with its error, and the rest
goes on. A run that was stopped, or whose time was too short, loses nothing: the next one asks what its file does not
answer. Needed are torch, timm and what this package imports of its own on the way, never nnunetv2; nnU-Net's networks
come from dynamic-network-architectures, and without it their rows hold the error.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from common import StockStep, batch_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nnunet_din.data.files import write_text
from nnunet_din.diagnosis.measurement import (
    Prediction,
    Step,
    TrainingStep,
    autocast,
    peak_memory,
    seconds_in_turn,
    seconds_of,
)
from nnunet_din.network import DualInteractionNetwork
from nnunet_din.network.cost import MEMORY_MARGIN, largest_batch, training_memory
from nnunet_din.network.fusion.attention import CrossAttention
from nnunet_din.network.presets import PRESETS, preset_for_volumes
from nnunet_din.network.reference import ReferenceNetwork
from nnunet_din.nnunet.devices import autocast_dtype

HERE = Path(__file__).resolve().parent
CLASSES = 4
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: nnU-Net's networks that DIN is compared with: the default, and ResEnc-M.
STOCK = ("PlainConvUNet", "ResidualEncoderUNet")
#: Most steps after which GradScaler must have found a scale in fp16.
SCALING_STEPS = 20


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes
    ----------
    presets, presets_3d : tuple of str
        Presets that must run in 2-D and in 3-D.
    checked : tuple of tuple of int
        Patches on which they do, in 2-D and in 3-D; maps do not divide into windows.
    compared : tuple of tuple of int
        Batch and patch, in 2-D and in 3-D, on which speeds are compared: nnU-Net's own for large images.
    counted : dict of str to tuple
        Preset -> batches and patches whose memory is measured.
    planned : dict of str to float
        Preset -> GB that its batch is planned for.
    planned_patch : tuple of int
        Patch of that batch.
    stock : tuple of str
        nnU-Net's networks that DIN is compared with.
    literal : tuple of str
        Presets that are compared with their literal twin, and ``literal_shape`` their batch and patch.
    windows : tuple of int
        Batch and map with more attention windows than a launch's grid may have (65535).
    repeats : int
        Timed steps.
    kernels : int
        Longest kernels that are named.
    backend : str
        Backend of torch.compile.
    patience : float
        Factor of the seconds that each question has.
    """

    presets: tuple[str, ...] = ("fast", "atto", "tiny", "base")
    presets_3d: tuple[str, ...] = ("fast", "atto")
    checked: tuple[tuple[int, ...], ...] = ((80, 48), (16, 32, 80))
    compared: tuple[tuple[int, ...], ...] = ((12, 512, 512), (2, 128, 128, 128))
    counted: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("fast", (12, 512, 512)),
        ("fast", (2, 128, 128, 128)),
        ("atto", (8, 256, 256)),
        ("atto", (2, 64, 64, 64)),
    )
    counted_classes: tuple[int, ...] = (4, 16, 118)
    planned: tuple[tuple[str, float], ...] = (("tiny", 12.0), ("base", 24.0))
    planned_patch: tuple[int, ...] = (256, 216)
    stock: tuple[str, ...] = STOCK
    literal: tuple[str, ...] = ("fast", "base")
    literal_shape: tuple[int, ...] = (2, 224, 224)
    windows: tuple[int, ...] = (64, 256, 216)
    repeats: int = 10
    kernels: int = 12
    backend: str = "inductor"
    patience: float = 1.0


TINY = Scale(
    presets=("fast",),
    presets_3d=("fast",),
    checked=((48, 32), (16, 16, 48)),
    compared=((2, 64, 64), (1, 32, 16, 16)),
    counted=(("fast", (2, 64, 64)), ("fast", (1, 32, 16, 16))),
    counted_classes=(4, 16),
    planned=(("atto", 0.3),),
    planned_patch=(32, 32),
    stock=STOCK[:1],
    literal=("fast",),
    literal_shape=(1, 32, 32),
    windows=(2, 30, 30),
    repeats=1,
    backend="eager",
    patience=10.0,
)


@dataclass(frozen=True)
class Entry:
    """A network whose speed is measured.

    Attributes
    ----------
    network : str
        "DIN" and a preset, or one of :data:`STOCK`.
    patch : tuple of int
        Its edges.
    batch : int or None
        Images a step; None: as many as the planners take for ``gigabytes``.
    gigabytes : float
        Memory target where there is no batch.
    compiled : bool
        Whether it is compiled.
    """

    network: str
    patch: tuple[int, ...]
    batch: int | None
    gigabytes: float = 0.0
    compiled: bool = True

    def __str__(self) -> str:
        size = f"{self.gigabytes:g} GB" if self.batch is None else by((self.batch, *self.patch))
        return f"{self.network}, {size}" + ("" if self.compiled else ", eager")


@dataclass(frozen=True)
class Run:
    """Where and how large to measure, and the networks that compile meanwhile."""

    device: torch.device
    scale: Scale
    contestants: dict[Entry, Contestant] = field(default_factory=dict)


#: Name of a figure, and the function that measures it: numbers or texts by what they are.
Figures = Iterator[tuple[str, Callable[[], dict]]]


# ----------------------------------------------------------------------------------------------------------------------
# Networks and steps


def din(preset: str, axes: int, classes: int = CLASSES, heads: bool = True) -> DualInteractionNetwork:
    """DIN as it is trained, with auxiliary heads, or as it predicts; volumes are pooled by 2 along every axis, as
    nnU-Net pools isotropic ones.
    """
    arguments = PRESETS[preset] if axes == 2 else preset_for_volumes(preset, [[1] * 3, *[[2] * 3] * 5], [[3] * 3] * 6)
    network = DualInteractionNetwork(1, classes, **arguments)
    if heads:
        network.add_auxiliary_heads()
    return network


def stock(name: str, patch: Sequence[int]) -> nn.Module:
    """nnU-Net's network for isotropic patches with edges that are powers of 2, as its planners make it."""
    from dynamic_network_architectures.architectures import unet

    axes, poolings = len(patch), int(math.log2(min(patch) / 4))
    conv, norm, widest = [(nn.Conv2d, nn.InstanceNorm2d, 512), (nn.Conv3d, nn.InstanceNorm3d, 320)][axes - 2]
    encoder = {"n_conv_per_stage": [2] * (poolings + 1)}
    if name == "ResidualEncoderUNet":
        encoder = {"n_blocks_per_stage": [1, 3, 4, *[6] * poolings][: poolings + 1]}
    widths = [min(32 * 2**i, widest) for i in range(poolings + 1)]
    layers = {"conv_op": conv, "norm_op": norm, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "conv_bias": True}
    layers |= {"nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}}
    kernels, strides = [[3] * axes] * (poolings + 1), [[1] * axes, *[[2] * axes] * poolings]
    decoder = {"n_conv_per_stage_decoder": [2 if name == "PlainConvUNet" else 1] * poolings, "deep_supervision": True}
    sizes = {"input_channels": 1, "num_classes": CLASSES, "n_stages": poolings + 1, "features_per_stage": widths}
    return getattr(unet, name)(**sizes, kernel_sizes=kernels, strides=strides, **layers, **encoder, **decoder)


def set_up_cudnn() -> None:
    """What is called fp32 is fp32, and cuDNN chooses its algorithms by trying them, as in ``nnUNetv2_train``."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True


def difference(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest difference as a share of the largest value that is expected, over all outputs."""
    pairs = [(o.detach().float().cpu(), e.detach().float().cpu()) for o, e in zip(outputs, expected, strict=True)]
    return max(float((o - e).abs().max() / e.abs().max()) for o, e in pairs)


def memory(step: Step) -> dict:
    """GB at the peak of a step that was called before; what the allocator reserves holds workspaces and fragments."""
    torch.cuda.empty_cache()
    result = {"allocated GB": peak_memory(step) / 1e9}
    if step.x.device.type == "cuda":
        result["reserved GB"] = torch.cuda.max_memory_reserved(step.x.device) / 1e9
    return result


# ----------------------------------------------------------------------------------------------------------------------
# Does everything run?


def runs(run: Run) -> Figures:
    """Networks in every precision against the CPU, and attention against itself."""
    for preset in run.scale.presets:
        yield f"{preset}, 2-D", partial(agreement, preset, run.scale.checked[0], run)
    for preset in run.scale.presets_3d:
        yield f"{preset}, 3-D", partial(agreement, preset, run.scale.checked[1], run)
    for name in HALVES:
        yield f"attention kernels, {name}", partial(attention_kernels, HALVES[name], run)
    yield "more windows than a launch takes", partial(many_windows, run)


def agreement(preset: str, patch: Sequence[int], run: Run) -> dict:
    """Outputs against the CPU's in fp32 with the same weights, and norms of all gradients; windows are padded."""
    torch.manual_seed(0)
    with run.device:
        network = din(preset, len(patch)).eval()
    x, target = batch_of((2, *patch), 2, CLASSES, run.device)
    result = {}
    with torch.no_grad():
        expected = copy.deepcopy(network).cpu()(x.cpu())
        for name, dtype in {"fp32": None, **HALVES}.items():
            with autocast(run.device, dtype):
                result[f"{name} against the CPU"] = difference(network(x), expected)
    for name, dtype in HALVES.items():
        step = TrainingStep(network, x, target, dtype)
        # On a CPU, oneDNN leaves parts of some gradients of volumes in half precision unwritten.
        with torch.backends.mkldnn.flags(enabled=run.device.type != "cpu"):
            for _ in range(SCALING_STEPS):
                step()
                if torch.isfinite(step.gradient_norm):
                    break
        result[f"{name} gradient norm"] = float(step.gradient_norm)
    return result


def attention_kernels(dtype: torch.dtype, run: Run) -> dict:
    """Outputs and gradients of attention in 7 x 7 windows, by each kernel, against plain arithmetic in fp32."""
    torch.manual_seed(0)
    inputs = [torch.randn(512, 1, 49, 128, device=run.device, dtype=dtype, requires_grad=True) for _ in range(3)]
    padding = torch.rand(512, 1, 1, 49, device=run.device) > 0.2

    def attend(backend: SDPBackend, tensors: Sequence[Tensor], mask: Tensor | None) -> list[Tensor]:
        with sdpa_kernel(backend):
            output = F.scaled_dot_product_attention(*tensors, attn_mask=mask)
        return [output, *torch.autograd.grad(output.float().square().sum(), tensors)]

    result = {}
    for kind, mask in {"": None, ", masked": padding}.items():
        expected = attend(SDPBackend.MATH, [t.detach().float().requires_grad_() for t in inputs], mask)
        for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
            key = name.removesuffix("_ATTENTION").lower() + kind
            try:
                result[key] = difference(attend(getattr(SDPBackend, name), inputs, mask), expected)
            except RuntimeError:  # torch has no such kernel for these inputs here
                result[key] = "no kernel"
    return result


def many_windows(run: Run) -> dict:
    """Attention of a batch whose windows are too many for one launch, against that of its last image alone."""
    n, *size = run.scale.windows
    with run.device:
        attention = CrossAttention(40)
        streams = [torch.randn(n, 40, *size, requires_grad=True) for _ in range(2)]
    with autocast(run.device, autocast_dtype(run.device)):
        outputs, alone = attention(streams), attention([stream[-1:] for stream in streams])
    gradients = torch.autograd.grad(sum(output.float().square().mean() for output in outputs), streams)
    return {
        "windows": n * math.prod(math.ceil(edge / 7) for edge in size),
        "against one image": difference([output[-1:] for output in outputs], alone),
        "largest gradient": max(float(gradient.abs().max()) for gradient in gradients),
    }


# ----------------------------------------------------------------------------------------------------------------------
# Memory


def counts(run: Run) -> Figures:
    """Small and large numbers of classes, 2-D and 3-D."""
    for preset, shape in run.scale.counted:
        for classes in run.scale.counted_classes:
            yield f"{preset}, {by(shape)}, {classes} classes", partial(counted, preset, shape, classes, run)


def counted(preset: str, shape: Sequence[int], classes: int, run: Run) -> dict:
    """The planners' count of a training step, and what the step takes."""
    dtype, axes = autocast_dtype(run.device), len(shape) - 1
    with torch.device("meta"):
        network = din(preset, axes, classes, heads=False)  # the count adds them
    count = training_memory(network, (shape[0], 2, *shape[1:]), half_precision=dtype is not None) / 1e9
    with run.device:
        network = din(preset, axes, classes)
    step = TrainingStep(network, *batch_of(shape, 2, classes, run.device), dtype)
    step()
    measured = memory(step)
    result = {"counted GB": count, **measured, "allocated / counted": measured["allocated GB"] / count}
    if "reserved GB" in measured:
        result["reserved / planned"] = measured["reserved GB"] / (MEMORY_MARGIN * count)
    return result


# ----------------------------------------------------------------------------------------------------------------------
# Speed


class Trained:
    """A network with its training step and its prediction, each in what nnU-Net computes in, in this process."""

    def __init__(self, entry: Entry, scale: Scale, device: torch.device):
        torch.manual_seed(0)
        self.entry, self.scale, self.device = entry, scale, device
        kind, _, preset = entry.network.partition(" ")
        self.plans: dict[str, float] = {}
        self.n = entry.batch or 0
        dtype = autocast_dtype(device)
        if entry.batch is None:
            with torch.device("meta"):
                network = din(preset, len(entry.patch), heads=False)

            def count(n: int) -> int:
                return training_memory(network, (n, 2, *entry.patch), dtype is not None)

            self.n = largest_batch(count, 1e9 * entry.gigabytes / MEMORY_MARGIN)
            self.plans = {"batch": self.n, "counted GB": count(self.n) / 1e9}
        with device:
            self.network = din(preset, len(entry.patch)) if preset else stock(kind, entry.patch)
        x, target = batch_of((self.n, *entry.patch), 2 if preset else 1, CLASSES, device)
        self.step = (TrainingStep if preset else StockStep)(self.network, x, target, dtype)
        self.predict = Prediction(self.network, x, torch.float16 if device.type == "cuda" else None)

    def compile(self) -> dict:
        """Seconds of compilation, and what it changes."""
        if not self.entry.compiled:
            return {}
        expected = self.predict()
        # For one shape, as in nnU-Net's training: shapes that differ from network to network would else be variable.
        self.network.compile(backend=self.scale.backend, dynamic=False)
        predicting = seconds_of(self.predict, self.device)
        changed = difference([self.predict()], [expected])
        training = seconds_of(self.step, self.device)
        return {"prediction s": predicting, "training s": training, "against eager": changed}

    def warm_up(self) -> dict:
        """Seconds in which cuDNN chooses its algorithms, and memory of a training step."""
        seconds = seconds_of(self.step, self.device) + seconds_of(self.predict, self.device)
        return {"first steps s": seconds, **self.plans, **memory(self.step)}

    def training(self) -> float:
        """Images a second of one step."""
        return self.n / seconds_of(self.step, self.device)

    def prediction(self) -> float:
        """Images a second of one forward pass."""
        return self.n / seconds_of(self.predict, self.device)

    def loss(self) -> float:
        """Seconds of the loss of all outputs and its gradients."""
        with self.step.autocast():
            outputs = [output.detach().requires_grad_() for output in self.network.train()(self.step.x)]

        def loss() -> None:
            with self.step.autocast():
                value = self.step.loss(outputs)
            value.backward()

        return statistics.median(seconds_in_turn({"loss": loss}, self.scale.repeats, self.device)["loss"])

    def kernels(self) -> dict:
        """Milliseconds of the kernels that take longest in a training step, by name."""
        from torch.profiler import ProfilerActivity, profile

        on_gpu = self.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
            seconds_of(self.step, self.device)
        spent = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in profiler.key_averages()}
        longest = sorted(spent, key=spent.__getitem__, reverse=True)[: self.scale.kernels]
        return {"all ms": sum(spent.values()) / 1000, **{f"`{key[:60]}`": spent[key] / 1000 for key in longest}}


class Contestant:
    """A :class:`Trained` in a process of its own: all compile at once, and then each waits until it is asked."""

    def __init__(self, entry: Entry, run: Run):
        context = torch.multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=answer, args=(theirs, entry, run.scale, run.device), daemon=True)
        self.process.start()
        theirs.close()
        self.patience = run.scale.patience
        self.answers: dict[str, dict] = {}
        self.connection.send("compile")

    def compiled(self) -> dict:
        """Wait for it."""
        if "compile" not in self.answers:
            self.answers["compile"] = self._receive()
        return self.answers["compile"]

    def warm(self) -> dict:
        """Make it ready for measurements."""
        self.compiled()
        if "warm_up" not in self.answers:
            self.answers["warm_up"] = self("warm_up")
        return self.answers["warm_up"]

    def __call__(self, what: str) -> object:
        """What this method of :class:`Trained` returns."""
        self.connection.send(what)
        return self._receive()

    def _receive(self) -> object:
        if not self.connection.poll(120 * self.patience):
            self.process.kill()  # it would answer an earlier question next time
            raise TimeoutError("no answer")
        result = self.connection.recv()
        if isinstance(result, Exception):
            raise result
        return result


def answer(connection: Connection, *arguments: object) -> None:
    """Answer questions until nobody is there to ask."""
    set_up_cudnn()
    trained = None
    with suppress(EOFError):
        while True:
            what = connection.recv()
            try:
                trained = trained or Trained(*arguments)
                result = getattr(trained, what)()
            except Exception as error:  # the other networks count
                result = RuntimeError(f"{type(error).__name__}: {_first_line(error)}")
            gc.collect()
            torch.cuda.empty_cache()  # the others share the device
            connection.send(result)


def entries(scale: Scale) -> dict[str, list[Entry]]:
    """Whose speed is compared: in 2-D, in 3-D, and in the batches that the planners take for their memory target."""
    result = {}
    for batch, *patch in scale.compared:
        compiled = [Entry(name, tuple(patch), batch) for name in ("DIN fast", *scale.stock)]
        result[f"{len(patch)}-D"] = [*compiled, Entry("DIN fast", tuple(patch), batch, compiled=False)]
    result["planned"] = [Entry(f"DIN {name}", scale.planned_patch, None, gb) for name, gb in scale.planned]
    return result


def compilations(run: Run) -> Figures:
    """All at once."""
    for entry, contestant in run.contestants.items():
        if entry.compiled:
            yield str(entry), contestant.compiled


def speed(kind: str, run: Run) -> Figures:
    """DIN fast beside nnU-Net's networks on the same patch and batch, in turn; memory of their training steps."""
    made = {entry: run.contestants[entry] for entry in entries(run.scale)[kind]}
    for entry, contestant in made.items():
        yield str(entry), contestant.warm
    yield "training, images/s", partial(in_turn, "training", run, made)
    yield "prediction, images/s", partial(in_turn, "prediction", run, made)
    yield "loss in a training step of DIN fast", partial(loss_share, run, made)
    yield "longest kernels of a training step of DIN fast", partial(next(iter(made.values())), "kernels")


def in_turn(kind: str, run: Run, made: dict[Entry, Contestant]) -> dict:
    """Images a second of each that works, step by step in turn, so that a device that slows down slows all."""
    rates: dict[str, list[float]] = {}
    for _ in range(run.scale.repeats):
        for entry, contestant in made.items():
            with suppress(Exception):  # which its own figure tells
                contestant.warm()
                rates.setdefault(entry.network + ("" if entry.compiled else ", eager"), []).append(contestant(kind))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        **medians,
        **{f"DIN fast / {name}": medians["DIN fast"] / medians[name] for name in STOCK if name in medians},
    }


def loss_share(run: Run, made: dict[Entry, Contestant]) -> dict:
    """Seconds of the loss and its gradients, all outputs, beside those of the whole step."""
    entry, contestant = next(iter(made.items()))
    contestant.warm()
    part = contestant("loss")
    whole = statistics.median(entry.batch / contestant("training") for _ in range(run.scale.repeats))
    return {"loss ms": 1000 * part, "step ms": 1000 * whole, "share": part / whole}


def larger(run: Run) -> Figures:
    """Tiny and base in the batches that the planners take for their memory target."""
    for entry in entries(run.scale)["planned"]:
        yield str(entry), partial(planned, run.contestants[entry], run)


def planned(contestant: Contestant, run: Run) -> dict:
    """Images a second, and the peak of a training step."""
    result = contestant.warm()
    rates = {k: statistics.median(contestant(k) for _ in range(run.scale.repeats)) for k in ("training", "prediction")}
    return {**result, **{f"{kind}, images/s": rate for kind, rate in rates.items()}}


def literal(run: Run) -> Figures:
    """The network as it is printed, without any saving, against ours."""
    for preset in run.scale.literal:
        yield f"{preset}, eager", partial(against_literal, preset, run)


def against_literal(preset: str, run: Run) -> dict:
    """Seconds of a forward pass and of a training step, and memory of a step: literal / ours."""
    torch.manual_seed(0)
    with run.device:
        ours = din(preset, 2, heads=False)
    x, target = batch_of(run.scale.literal_shape, 2, CLASSES, run.device)
    dtype, rows = autocast_dtype(run.device), []
    for network in (ReferenceNetwork(ours), ours):
        steps = {"forward": Prediction(network, x, dtype), "training step": TrainingStep(network, x, target, dtype)}
        seconds = seconds_in_turn(steps, run.scale.repeats, run.device)
        peak = memory(steps["training step"])["allocated GB"]
        rows.append((*map(statistics.median, seconds.values()), peak))
        del steps
    return {name: a / b for name, a, b in zip(("forward", "training step", "memory"), *rows, strict=True)}


# ----------------------------------------------------------------------------------------------------------------------
# All of it

#: Question, its seconds, its figures; in this order.
QUESTIONS = [
    ("Does everything run, and give what a CPU gives (largest difference / largest value)?", 70, runs),
    ("Does the planners' count of a training step hold?", 90, counts),
    ("How long does torch.compile take (all at once)?", 120, compilations),
    ("How fast is `fast` in 2-D beside nnU-Net's networks?", 100, partial(speed, "2-D")),
    ("How fast is it in 3-D?", 100, partial(speed, "3-D")),
    ("What do `tiny` and `base` train in the planners' batches?", 60, larger),
    ("How does the literal network compare (literal / ours)?", 60, literal),
]


def ask(questions: list, run: Run, minutes: float, report: dict, path: Path) -> None:
    """Measure figure by figure what the report does not answer; each is printed and written at once."""
    begin = time.monotonic()
    answered = [(figure["question"], figure["figure"]) for figure in report["figures"]]
    for question, seconds, figures in questions:
        last = min(time.monotonic() + run.scale.patience * seconds, begin + 60 * minutes)
        for name, measure in figures(run):
            if (question, name) in answered:
                continue
            figure = {"question": question, "figure": name}
            start = time.monotonic()
            if start > last:
                figure["error"] = "not measured: no time was left"
            else:
                try:
                    figure["result"] = {key: rounded(value) for key, value in measure().items()}
                except Exception as error:  # whatever it is, the other figures count
                    figure["error"] = f"{type(error).__name__}: {_first_line(error)}"
            figure |= {"seconds": round(time.monotonic() - start, 1), "commit": report["commit"]}
            report["figures"].append(figure)
            write_text(path, json.dumps(report, indent=1) + "\n")
            print(f"{start - begin:5.0f} s  {name}: {text_of(figure)}", flush=True)
            gc.collect()
            torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    """What an error says, without what follows its first line."""
    return (str(error).strip().splitlines() or ["no message"])[0]


def rounded(value: float | str) -> float | str:
    """Four digits; JSON has no infinity."""
    if isinstance(value, str):
        return value
    return float(f"{value:.4g}") if math.isfinite(value) else "not finite"


def by(shape: Sequence[int]) -> str:
    """Batch and patch in words."""
    return f"{shape[0]} x {' x '.join(map(str, shape[1:]))}" if len(shape) > 1 else str(shape[0])


def text_of(figure: dict) -> str:
    """A figure's result or error in one line."""
    if "error" in figure:
        return figure["error"]
    values = {key: value if isinstance(value, str) else f"{value:g}" for key, value in figure["result"].items()}
    return ", ".join(f"{key} {value}" for key, value in values.items())


def table(report: dict) -> str:
    """Markdown: what measured, and a row for each figure, or one for a question without any."""
    about = [f"{key} {report[key]}" for key in ("device", "torch", "date") if key in report]
    lines = [f"Measured on: {', '.join(about)}." if about else "Nothing has been measured yet.", ""]
    lines += ["| question | figure | result | commit |", "| --- | --- | --- | --- |"]
    for question, *_ in QUESTIONS:
        figures = [figure for figure in report["figures"] if figure["question"] == question]
        lines += [f"| {question} | {f['figure']} | {text_of(f)} | `{f['commit']}` |" for f in figures]
        lines += [] if figures else [f"| {question} | | not measured yet | |"]
    return "\n".join(lines)


def commit() -> str:
    """Commit of the working tree, if git knows it."""
    try:
        command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def begun(path: Path, report: dict) -> dict:
    """The report with what its file answers already, where that is of the same device and torch."""
    with suppress(FileNotFoundError):
        before = json.loads(path.read_text())
        if all(before.get(key) == report[key] for key in ("device", "torch")):
            report["figures"] = [figure for figure in before["figures"] if "result" in figure]
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="ask", choices=["ask", "table"], help="default: ask")
    parser.add_argument("--minutes", type=float, default=9, help="for all together (default: 9)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="try this script: small sizes, torch.compile without code")
    parser.add_argument("--json", type=Path, help="file of the figures (default: benchmarks/gpu.json; none if --tiny)")
    parser.add_argument("--commit", help="what to name it by where there is no git")
    args = parser.parse_args(argv)
    path = args.json or (Path(tempfile.mkdtemp()) if args.tiny else HERE) / "gpu.json"
    if args.what == "table":
        print(table(json.loads(path.read_text())))
        return
    device = torch.device(args.device)
    if device.type != "cuda" and not args.tiny:
        parser.error("a CPU gives no figure of a GPU: --tiny tries this script there")
    set_up_cudnn()
    report = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "commit": args.commit or commit(),
        "date": date.today().isoformat(),
        "figures": [],
    }
    report = begun(path, report)
    print(table(report).splitlines()[0], flush=True)
    # Each of the processes would else start as many that compile as there are processors.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "2")
    run = Run(device, TINY if args.tiny else Scale())
    run.contestants.update({e: Contestant(e, run) for group in entries(run.scale).values() for e in group})
    ask(QUESTIONS, run, args.minutes, report, path)
    print(f"\n{table(report)}\n\n{path}")


if __name__ == "__main__":
    main()
