"""Olive's search over its int8 pass for CPUs, as its documentation has it: a run configuration with two metrics.

    python olive_search.py FOLDER OUT.onnx

The pass is OnnxStaticQuantization with all that Olive itself marks as searchable (type, per channel, 7 bits, format,
calibration, preprocessing), the sampler TPE over a joint order; the goal is the metric with the allowed drop, and of
those the lowest latency by Olive's own measurement. SAMPLES of the 72 combinations are tried; no output is a failure.
The wall time is from the model's file to the result's, without the import.
"""

import os
import shutil
import sys
import time
from pathlib import Path

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
from olive.workflows import run
from task import Task, tell

SAMPLES = 24
SEED = 0


def main(folder, out):
    """Search, write the result, tell the time."""
    task = Task(folder)
    os.environ["EDGEFLEET_BENCH_CASE"] = str(task.folder.resolve())
    work = Path(f"{out}.work").resolve()
    started = time.perf_counter()
    run(configuration(task, work))
    best = result_of(work)
    if best is None:
        raise SystemExit("Olive found no model that meets its goals")
    shutil.copyfile(best, out)
    took_s = time.perf_counter() - started
    shutil.rmtree(work)
    tell(took_s=took_s, configuration=f"OnnxStaticQuantization, all searchable, joint TPE, {SAMPLES} samples")


def configuration(task, work):
    """Olive's run configuration."""
    data = Path(__file__).with_name("olive_data.py")
    higher = {"type": "percent-max-degradation", "value": 100 * task.max_drop}

    def dataset(name, part):
        return {
            "name": name,
            "user_script": str(data),
            "load_dataset_config": {"type": "part_of_case", "part": part},
            "dataloader_config": {"type": "default_dataloader", "batch_size": 1},
            "pre_process_data_config": {"type": "skip_pre_process"},
            "post_process_data_config": {"type": "skip_post_process"},
        }

    quality = {
        "name": "quality",
        "type": "custom",
        "sub_types": [{"name": "quality", "priority": 2, "higher_is_better": True, "goal": higher}],
        "user_config": {"user_script": str(data), "evaluate_func": "quality_of"},
    }
    latency = {
        "name": "latency",
        "type": "latency",
        "data_config": "selection",
        "sub_types": [{"name": "p50", "priority": 1}],
        "user_config": {
            "inference_settings": {"onnx": {"session_options": {"intra_op_num_threads": 1}}},
        },
    }
    return {
        "input_model": {"type": "OnnxModel", "model_path": str(task.model)},
        "systems": {
            "here": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "data_configs": [dataset("calibration", "calibration"), dataset("selection", "selection")],
        "evaluators": {"both": {"metrics": [latency, quality]}},
        "passes": {"int8": {"type": "OnnxStaticQuantization", "data_config": "calibration", **SEARCHED}},
        "search_strategy": {
            "execution_order": "joint",
            "sampler": "tpe",
            "sampler_config": {"max_samples": SAMPLES, "seed": SEED},
            "output_model_num": 1,
        },
        "evaluator": "both",
        "host": "here",
        "target": "here",
        "evaluate_input_model": True,
        "cache_dir": str(work / "cache"),
        "output_dir": str(work / "out"),
        "log_severity_level": 3,
    }


SEARCHED = dict.fromkeys(
    ("precision", "per_channel", "reduce_range", "quant_preprocess", "calibrate_method", "quant_format",
     "activation_type"),
    "SEARCHABLE_VALUES",
)  # fmt: skip


def result_of(work):
    """The one model that Olive put out, or None."""
    return next(iter(sorted((work / "out").rglob("*.onnx"))), None)


if __name__ == "__main__":
    main(*sys.argv[1:])
