"""Export every preset, encoder family, fusion and decoder, and compare the logits with the network's.

    python scripts/check_exports.py [--only NAME ...]

Each network has random weights. The graphs are made with one batch and size, and run with four others, among them one
image of a single stride. Prints a table in Markdown: the largest difference by the largest logit, and seconds. Takes
about an hour of a core; docs/deployment.md says what was checked last.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch

from nnunet_din.deployment.export import export_program, write_onnx
from nnunet_din.network import PRESETS, DualInteractionNetwork
from nnunet_din.planners.configurations import network_arguments

#: Beside the presets: what no preset has. Decoders are narrow where only the rest is looked at.
NETWORKS = {
    "fast, EMCAD": {**PRESETS["fast"], "decoder": "emcad"},
    "fast, DIFM at every level": {**PRESETS["fast"], "fusion": "difm"},
    "fast, concatenation": network_arguments(PRESETS["fast"], {"fusion": "concat"}),
    "fast, input fusion": network_arguments(PRESETS["fast"], {"fusion": "input"}),
    "fast, three streams, two heads, one query": {
        **PRESETS["fast"],
        "versions": 3,
        "num_heads": 2,
        "queries": [0],
        "decoder_channels": 16,
    },
    "fast, three DIFMs without merging and gate": {
        **PRESETS["fast"],
        "fusion": "difm",
        "fused_stages": 3,
        "feature_merging": False,
        "spatial_attention": False,
        "decoder_channels": 16,
    },
    "ConvNeXt V2": {"encoder": "convnextv2_atto", "layer_scale": None, "decoder_channels": 16},
    "FCT": {"encoder": "fct", "decoder_channels": 16},
    "ResNet-18": {"encoder": "resnet18", "decoder_channels": 16},
    "Swin-T": {"encoder": "swin_tiny_patch4_window7_224", "decoder_channels": 16},
}
#: Images, and height and width in strides.
SIZES = ((1, 1, 1), (3, 7, 2), (1, 8, 9), (2, 12, 10))


def in_torch(network: DualInteractionNetwork, path: Path) -> Callable:
    """The graph of torch as a function of a tensor."""
    return export_program(network).module(check_guards=False)


def in_onnxruntime(network: DualInteractionNetwork, path: Path) -> Callable:
    """The ONNX file as a function of a tensor."""
    write_onnx(network, path)
    session = onnxruntime.InferenceSession(path)
    return lambda x: torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


def check(network: DualInteractionNetwork, export: Callable) -> tuple[float, float]:
    """Largest difference, relative to the largest logit, and seconds of the export."""
    stride, worst = network.encoders[0].stride, 0.0
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        begin = time.perf_counter()
        exported = export(network, Path(folder) / "network.onnx")
        seconds = time.perf_counter() - begin
        for n, height, width in SIZES:
            x = torch.rand(n, network.versions * network.input_channels, height * stride, width * stride)
            expected = network(x)
            worst = max(worst, ((exported(x) - expected).abs().max() / expected.abs().max()).item())
    return worst, seconds


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks = {**PRESETS, **NETWORKS}
    parser.add_argument("--only", nargs="+", choices=networks, default=list(networks))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| network | torch.export | ONNX, onnxruntime |\n| --- | --- | --- |", flush=True)
    for name in args.only:
        torch.manual_seed(0)
        network = DualInteractionNetwork(1, 4, **networks[name]).eval()
        cells = []
        for export in (in_torch, in_onnxruntime):
            try:
                difference, seconds = check(network, export)
                cells.append(f"{difference:.1e}, {seconds:.0f} s")
            except Exception as error:  # the table says it; the others are still to be checked
                cells.append(f"{type(error).__name__}: {str(error).splitlines()[0][:80]}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
