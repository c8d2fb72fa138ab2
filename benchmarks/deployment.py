"""Prediction of one volume on a CPU by torch, onnxruntime and OpenVINO: seconds, and whether the labels agree.

The tiles, their mirroring and their average are those of ``examples/onnx_predict.py`` in all cases, so that nothing but
the network's engine differs. Without ``--model`` the networks are those of the planners' presets with random weights,
for plans made of the data set's fingerprint (``nnUNetv2_extract_fingerprint -d ID``); nnU-Net's three folders must be
set. With ``--model`` it is a trained one, for which agreement means something. Writes ``deployment.json`` beside this
file; results of other models in it are kept. Needs onnxruntime, onnxscript and, for it, openvino.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import head, plan
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_din.data.files import read_json, write_text
from nnunet_din.deployment.export import write_onnx
from nnunet_din.network import DualInteractionNetwork
from nnunet_din.nnunet.folders import dataset_name, nnunet_folder
from nnunet_din.planners.din_planners import nnUNetPlannerDINAtto, nnUNetPlannerDINFast

PLANNERS = {"fast": nnUNetPlannerDINFast, "atto": nnUNetPlannerDINAtto}


def example():
    """examples/onnx_predict.py as a module."""
    path = Path(__file__).resolve().parents[1] / "examples" / "onnx_predict.py"
    spec = importlib.util.spec_from_file_location("onnx_predict", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Torch:
    """The network itself."""

    def __init__(self, network):
        self.network = network

    def run(self, names, feed):
        """As onnxruntime's session."""
        with torch.inference_mode():
            x = torch.from_numpy(feed["image"]).contiguous(memory_format=torch.channels_last)
            return [self.network(x).numpy()]


class OpenVINO:
    """The ONNX file in OpenVINO, compiled for the patch, on as many threads as torch, in fp32."""

    def __init__(self, path, shape):
        import openvino

        core = openvino.Core()
        model = core.read_model(path)
        model.reshape(shape)
        options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        self.model = core.compile_model(model, "CPU", options)

    def run(self, names, feed):
        """As onnxruntime's session."""
        return [self.model(feed["image"])[0]]


class Calibration:
    """Slices of the volume for the static quantization of onnxruntime."""

    def __init__(self, tiles):
        self.tiles = iter(tiles)

    def get_next(self):
        """The next input, or None."""
        tile = next(self.tiles, None)
        return None if tile is None else {"image": tile}


def onnxruntime_session(path):
    """On as many threads as torch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def engines(network, folder: Path, data: np.ndarray, patch: list[int], smaller: bool) -> dict:
    """Name -> something with onnxruntime's ``run``."""
    path, shape = folder / "network.onnx", [1, len(data), *patch]
    write_onnx(network, path)
    result = {"torch": Torch(network), "onnxruntime": onnxruntime_session(path)}
    if importlib.util.find_spec("openvino"):
        result["OpenVINO"] = OpenVINO(path, shape)
    if smaller:
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        half = folder / "fp16.onnx"
        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), half)
        result["onnxruntime, fp16"] = onnxruntime_session(half)
        from onnxruntime.quantization import QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared, quantized = folder / "prepared.onnx", folder / "int8.onnx"
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        margins = [max(0, p - n) for p, n in zip(patch, data.shape[2:], strict=True)]
        padded = np.pad(data, ((0, 0), (0, 0), *((0, m) for m in margins)))
        tiles = [padded[None, :, z, : patch[0], : patch[1]].astype(np.float32) for z in range(0, data.shape[1], 2)]
        quantize_static(
            prepared,
            quantized,
            Calibration(tiles),
            op_types_to_quantize=["Conv"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
        )
        result["onnxruntime, int8 convolutions"] = onnxruntime_session(quantized)
    return result


def setting(name: str, args: argparse.Namespace):
    """Network, plans and the description of ``dataset.json`` for a preset, or for a trained model."""
    if args.model:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
        predictor.initialize_from_trained_model_folder(str(args.model), (args.fold,), "checkpoint_final.pth")
        predictor.network.load_state_dict(predictor.list_of_parameters[0])
        return predictor.network.eval(), predictor.plans_manager, predictor.dataset_json
    plans, _ = plan(PLANNERS[name], args.dataset)
    manager = PlansManager(plans)
    raw = nnunet_folder("nnUNet_raw") / dataset_name(args.dataset)
    torch.manual_seed(0)
    arguments = manager.get_configuration("2d").network_arch_init_kwargs
    dataset_json = read_json(raw / "dataset.json")
    return DualInteractionNetwork(1, len(dataset_json["labels"]), **arguments).eval(), manager, dataset_json


def measure(name: str, args: argparse.Namespace) -> dict:
    """Seconds of each engine, with and without mirroring, and its agreement with torch."""
    predict = example().predict
    network, manager, dataset_json = setting(name, args)
    configuration = manager.get_configuration("2d")
    raw = nnunet_folder("nnUNet_raw") / dataset_name(args.dataset)
    image = str(raw / "imagesTr" / f"{args.case}_0000.nii.gz")
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, *_ = preprocessor.run_case([image], None, manager, configuration, dataset_json)
    patch = [int(n) for n in configuration.patch_size]
    result = {"patch_size": patch, "volume": list(data.shape[1:]), "engines": {}}
    with tempfile.TemporaryDirectory() as folder:
        sessions = engines(network, Path(folder), data, patch, args.smaller)
        labels = {}
        for mirror_axes, repeats in ((None, args.repeats), ([0, 1], 1)):
            model = {"patch_size": patch, "tile_step_size": 0.5, "mirror_axes": mirror_axes}
            warm = data[:, :1]
            seconds = {engine: [] for engine in sessions}
            for repeat in range(repeats + 1):
                for engine, session in sessions.items():
                    begin = time.perf_counter()
                    logits = predict(warm if not repeat else data, model, session)
                    if repeat:  # the first is for warming up
                        seconds[engine].append(time.perf_counter() - begin)
                        labels[engine] = logits.argmax(axis=0)
            for engine, values in seconds.items():
                entry = result["engines"].setdefault(engine, {})
                entry["seconds_mirrored" if mirror_axes else "seconds"] = round(min(values), 2)
                agreement = float((labels[engine] == labels["torch"]).mean())
                entry["agreement_mirrored" if mirror_axes else "agreement"] = round(agreement, 6)
            print(name, json.dumps(result["engines"], indent=2), flush=True)
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", dest="dataset", required=True, metavar="ID")
    parser.add_argument("--case", required=True, help="a training case")
    parser.add_argument("--presets", nargs="+", choices=PLANNERS, default=list(PLANNERS))
    parser.add_argument("--model", type=Path, help="a trained model's folder, in place of the presets")
    parser.add_argument("--fold", default="0")
    parser.add_argument("--smaller", action="store_true", help="also in half precision, and with int8 convolutions")
    parser.add_argument("--repeats", type=int, default=2, help="without mirroring; the least counts")
    args = parser.parse_args()
    args.fold = args.fold if args.fold == "all" else int(args.fold)
    args.dataset = dataset_name(args.dataset)
    path = Path(sys.argv[0]).resolve().with_suffix(".json")
    results = read_json(path) if path.is_file() else {}
    for name in [args.model.name] if args.model else args.presets:
        results[name] = {**head("cpu"), "case": args.case, **measure(name, args)}
        write_text(path, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
