"""Two processes in the tests of `accel.distributed`: `python processes.py RANK JOBS.json`, in turn for each job.

They are set up as torchrun would, but several jobs share one pair of processes, since starting those takes longest.
"""

import importlib.util
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muomni.accel.distributed import Group, ParallelChoice, connect
from muomni.accel.mixed_precision import Precision
from muomni.config import OmniConfig, Recipe, ThinkerConfig
from muomni.config.recipe import EvalSpec, OptimizerSpec
from muomni.data import Batch
from muomni.data.speech import pairs
from muomni.model import OmniModel
from muomni.ops.cross_entropy import IGNORE
from muomni.training.objectives.module import LossModule
from muomni.training.omni_task import Sampler
from muomni.training.optim.build import build_optimizers
from muomni.training.stage import train
from muomni.training.step import TrainStep

CPU = torch.device("cpu")
ROWS, T = 8, 12


def main(rank: int, jobs: list[dict[str, Any]]) -> None:
    """Does the jobs; leaves what came of job n in the file it names, with the rank added."""
    for job in jobs:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(job["port"])}
        if job["kind"] == "train":
            found = train_job(rank, job)
        else:
            with connect(ParallelChoice(job["kind"], "test", rank, 2, rank), CPU) as group:
                steps, weights = learn(group, job["optimizer"])
            found = {"steps": steps}
            torch.save(weights, f"{job['out']}-{rank}.pt")
        Path(f"{job['out']}-{rank}.json").write_text(json.dumps(found))


def train_job(rank: int, job: dict[str, Any]) -> dict[str, Any]:
    """A whole run; `at` names a step before which rank 1 dies or gets a signal."""
    at, resume_from, copied = job.get("at"), job.get("resume_from"), job.get("copy")
    if copied is not None and rank == 0:
        shutil.copytree(copied, f"{job['run']}.partial", symlinks=True)
        Path(f"{job['run']}.partial").rename(job["run"])
    while copied is not None and not Path(job["run"]).exists():
        time.sleep(0.02)
    call, prepare_pairs = TrainStep.__call__, pairs.prepare_pairs
    if at is not None and rank == 1:
        act: Callable[[], None] = (
            (lambda: os._exit(7)) if at[0] == "die" else (lambda: signal.raise_signal(signal.SIGINT))
        )
        TrainStep.__call__ = _before(at[1], act, call)
    if job.get("makes_pairs"):
        pairs.prepare_pairs = made_pairs().make_pairs
    try:
        result = train(
            Recipe.model_validate(job["recipe"]),
            Path(job["run"]),
            resume_from=resume_from and Path(resume_from),
            make_sampler=make_sampler,
        )
        return {"applied": result.progress.applied, "stopped": result.stopped, "main": result.is_main}
    except Exception as error:  # noqa: BLE001 - the test looks at it
        return {"error": type(error).__name__, "text": str(error)}
    finally:
        TrainStep.__call__ = call
        pairs.prepare_pairs = prepare_pairs


def made_pairs() -> Any:
    """The module beside this one; the tests are no package."""
    spec = importlib.util.spec_from_file_location("made_pairs", Path(__file__).with_name("made_pairs.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_sampler(tokenizer: Any, evaluation: EvalSpec, seed: int) -> Sampler:
    """Its text shows that the model is whole: the most likely tokens after some ids."""

    def sample(model: OmniModel, step: int) -> list[str]:
        was_training = model.training
        model.eval()
        with torch.no_grad():
            texts = [str(model(torch.arange(8)[None]).logits.argmax(-1).tolist()) for _ in evaluation.prompts]
        model.train(was_training)
        return texts

    return sample


def _before(step: int, act: Callable[[], None], call: Any) -> Any:
    taken = 0

    def acting(self, batches):
        nonlocal taken
        taken += 1
        if taken == step:
            act()
        return call(self, batches)

    return acting


def learn(group: Group, optimizer: str) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    """Three steps in fp64 over rows whose targets are few in some and many in others, in micro-batches of two rows.

    Returns:
        Loss and norm of each step, and the whole weights at the end (of process 0).
    """
    thinker: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    config = OmniConfig(thinker=ThinkerConfig(**thinker, **heads))
    model = OmniModel(config, torch.Generator().manual_seed(0)).double()
    precision = Precision("fp32", CPU, "test")
    called = group.apply(LossModule(model), CPU)
    optimizers = build_optimizers(model, OptimizerSpec.model_validate({"name": optimizer, "lr": 1e-2}), precision)
    step = TrainStep(called, optimizers, torch.ones(9), 0, precision, group)
    results = []
    for number in range(3):
        mine = list(range(number * ROWS + group.rank, (number + 1) * ROWS, group.size))
        result = step([_batch(mine[start : start + 2]) for start in range(0, len(mine), 2)])
        results.append((sum(group.gather(float(result.loss))), float(result.grad_norm)))
    whole = group.whole_model(model)
    weights = {} if whole is None else dict(whole.state_dict())
    return results, {name: tensor.detach().clone() for name, tensor in weights.items()}


def _batch(rows: list[int]) -> Batch:
    ids = torch.stack([torch.randint(50, (T,), generator=torch.Generator().manual_seed(row)) for row in rows])
    labels = ids.clone()
    labels[:, 0] = IGNORE
    for place, row in enumerate(rows):
        labels[place, : 10 * (row % 2)] = IGNORE  # the rows of one of two processes have few targets
    return Batch(
        input_ids=ids,
        labels=labels,
        positions=torch.arange(T).repeat(len(rows), 1),
        cu_seqlens=torch.arange(len(rows) + 1, dtype=torch.int32) * T,
        max_seqlen=T,
        num_targets=int((labels[:, 1:] != IGNORE).sum()),
        id="",
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
