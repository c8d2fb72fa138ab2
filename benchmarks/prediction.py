"""Where prediction spends its time for one case: DIN and nnU-Net's own 2-D network, in one run.

Networks with random weights, plans as their planners make them, and the functions that ``nnUNetv2_predict`` calls:
preprocessing (of it, the enhancement and DIN's checks), the network with mirroring, resampling and writing. nnU-Net's
three folders must be set and the fingerprint extracted (``nnUNetv2_extract_fingerprint -d ID``). Writes
``prediction.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from common import head, plan, write
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_din.planners.din_planners import nnUNetPlannerDINAtto, nnUNetPlannerDINFast
from nnunet_din.planners.din_preprocessor import DINPreprocessor

MODELS = {"nnU-Net 2d": ExperimentPlanner, "DIN atto": nnUNetPlannerDINAtto, "DIN fast": nnUNetPlannerDINFast}


class Clock:
    """Sums the seconds of named stretches."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def time(self, name: str, function, *args, **kwargs):
        """Call the function."""
        begin = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
        return result


def predictor_for(plans: dict, dataset_json: dict, device: torch.device) -> nnUNetPredictor:
    """nnU-Net's predictor on random weights, mirroring along both axes."""
    manager = PlansManager(plans)
    configuration = manager.get_configuration("2d")
    labels = manager.get_label_manager(dataset_json)
    torch.manual_seed(0)
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        len(dataset_json["channel_names"]),
        labels.num_segmentation_heads,
        deep_supervision=False,
    )
    predictor = nnUNetPredictor(device=device, perform_everything_on_device=True, allow_tqdm=False)
    predictor.manual_initialization(
        network.to(device).eval(), manager, configuration, [network.state_dict()], dataset_json, "none", (0, 1)
    )
    return predictor


def predict(predictor: nnUNetPredictor, files: list[str], output: str) -> dict[str, float]:
    """Seconds by stage for one case."""
    configuration, plans = predictor.configuration_manager, predictor.plans_manager
    clock = Clock()
    preprocessor = configuration.preprocessor_class(verbose=False)
    if isinstance(preprocessor, DINPreprocessor):
        # What DINPreprocessor adds is its run_case_npy without nnU-Net's own.
        stock = DefaultPreprocessor.run_case_npy
        DefaultPreprocessor.run_case_npy = lambda *args: clock.time("run_case_npy of nnU-Net", stock, *args)
        whole = preprocessor.run_case_npy
        preprocessor.run_case_npy = lambda *args: clock.time("run_case_npy of DIN", whole, *args)
    try:
        data, _, properties = clock.time(
            "preprocessing", preprocessor.run_case, files, None, plans, configuration, predictor.dataset_json
        )
    finally:
        if isinstance(preprocessor, DINPreprocessor):
            DefaultPreprocessor.run_case_npy = stock
    logits = clock.time(
        "network and mirroring", predictor.predict_logits_from_preprocessed_data, torch.from_numpy(data)
    ).cpu()
    clock.time(
        "resampling and writing",
        export_prediction_from_logits,
        logits,
        properties,
        configuration,
        plans,
        predictor.dataset_json,
        output,
    )
    seconds = clock.seconds
    seconds["of DIN, not the network"] = seconds.pop("run_case_npy of DIN", 0) - seconds.pop(
        "run_case_npy of nnU-Net", 0
    )
    stages = ("preprocessing", "network and mirroring", "resampling and writing")
    seconds["total"] = sum(seconds[stage] for stage in stages)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-d", required=True, help="ID of the data set")
    parser.add_argument("--case", help="name of a training case (default: the first)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    raw = Path(os.environ["nnUNet_raw"], maybe_convert_to_dataset_name(args.d))
    dataset_json = json.loads((raw / "dataset.json").read_text())
    case = args.case or sorted(p.name for p in (raw / "imagesTr").iterdir())[0].rpartition("_0000")[0]
    files = sorted(str(p) for p in (raw / "imagesTr").glob(f"{case}_*"))
    device = torch.device(args.device)
    predictors = {
        name: predictor_for(plan(planner, args.d)[0], dataset_json, device) for name, planner in MODELS.items()
    }
    runs = {name: [] for name in MODELS}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.repeats + 1):  # the first is a warm-up
            for name, predictor in predictors.items():
                seconds = predict(predictor, files, str(Path(folder, "out")))
                if i:
                    runs[name].append(seconds)
    result = head(device) | {"case": case, "models": {}}
    for name, rows in runs.items():
        rows = sorted(rows, key=lambda row: row["total"])
        median = rows[len(rows) // 2]
        share = [row["of DIN, not the network"] / row["total"] for row in rows]
        result["models"][name] = {
            "seconds": {key: round(value, 3) for key, value in median.items()},
            "total, spread": [round(rows[0]["total"], 3), round(rows[-1]["total"], 3)],
            "share that is DIN's and not the network": [round(min(share), 4), round(max(share), 4)],
        }
        print(f"{name}: {json.dumps(result['models'][name])}")
    write(result)


if __name__ == "__main__":
    main()
