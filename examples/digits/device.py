"""An application on a device: it classifies handwritten digits and learns a little later whether it was right.

    python examples/digits/device.py agent.toml models/digits/holdout.npz

It replays the held-out digits in random order through the in-process API, reports each outcome after a delay,
and keeps a small status file beside the config. It works whether or not the network is there.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import signal
import time
from collections import Counter, deque
from pathlib import Path

import numpy as np

from edge_agent import Agent
from edge_agent.errors import AgentError, UnknownModelError

MODEL = "digits"


class DigitsDevice:
    """Counts what it did, so that the fleet's numbers can be compared with the device's own."""

    def __init__(self, agent: Agent, holdout: Path, *, outcome_delay_s: float, seed: int) -> None:
        with np.load(holdout) as arrays:
            self._images = arrays["images"].astype(np.float32)[:, None, None, :, :]  # [n, 1, 1, 8, 8]
            self._labels = arrays["labels"].tolist()
        self._agent, self._outcome_delay_s, self._random = agent, outcome_delay_s, random.Random(seed)
        self._outcomes: deque[tuple[float, str, int]] = deque()
        self.answered: Counter[str] = Counter()
        self.correct: Counter[str] = Counter()
        self.errors = 0
        self.first_answer_at: float | None = None

    def classify_one(self) -> None:
        """Classify one random digit; without a model yet there is nothing to do."""
        place = self._random.randrange(len(self._labels))
        try:
            prediction = self._agent.infer(MODEL, {"image": self._images[place]})
        except UnknownModelError:
            return
        except AgentError:
            self.errors += 1
            return
        self.first_answer_at = self.first_answer_at or time.time()
        self.answered[prediction.version] += 1
        self.correct[prediction.version] += prediction.class_index == self._labels[place]
        self._outcomes.append((time.monotonic() + self._outcome_delay_s, prediction.id, self._labels[place]))

    def report_outcomes(self, *, all_of_them: bool = False) -> None:
        """Report the truths that have become known."""
        while self._outcomes and (all_of_them or self._outcomes[0][0] <= time.monotonic()):
            _, prediction_id, label = self._outcomes.popleft()
            self._agent.report_outcome(prediction_id, label=label)

    def status(self) -> dict[str, object]:
        """What this device did so far, by its own count."""
        return {
            "answered": dict(self.answered),
            "correct": dict(self.correct),
            "errors": self.errors,
            "first_answer_at": self.first_answer_at,
            "windows": self._agent.windows_closed,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, help="the agent's config")
    parser.add_argument("holdout", type=Path, help="held-out digits: images and labels")
    parser.add_argument("--rate", type=float, default=20.0, help="digits per second")
    parser.add_argument("--outcome-delay", type=float, default=0.5, help="seconds until the truth is known")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stopped: list[int] = []  # a handler must not touch a lock: the thread it interrupts may hold it
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda came, _: stopped.append(came))
    status_file = options.config.with_suffix(".status.json")

    agent = Agent.open(options.config)
    device = DigitsDevice(agent, options.holdout, outcome_delay_s=options.outcome_delay, seed=options.seed)
    next_status = 0.0
    while not stopped:
        time.sleep(1 / options.rate)
        device.classify_one()
        device.report_outcomes()
        if time.monotonic() >= next_status:
            next_status = time.monotonic() + 0.5
            write_status(status_file, device.status())
    device.report_outcomes(all_of_them=True)
    agent.close()
    write_status(status_file, device.status())


def write_status(path: Path, status: dict[str, object]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(status))
    temporary.replace(path)


if __name__ == "__main__":
    main()
