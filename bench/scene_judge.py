"""The judge of drawn scenes: trains it, and prints how often it is right of real drawings.

    OMP_NUM_THREADS=1 python bench/scene_judge.py runs/scene-judge             # for 32 by 32
    OMP_NUM_THREADS=1 python bench/scene_judge.py runs/scene-judge-64 --size 64

`bedstone.inspect.scene_judge.open_scene_judge` opens the folder that it writes.
"""

import argparse
import json
import time

from bedstone.evaluate.scene_judge import SceneGridConfig
from scene_learning import SceneLearning, train_scene_judge

if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", help="to write the judge into")
    arguments.add_argument("--size", type=int, default=SceneGridConfig.size)
    arguments.add_argument("--steps", type=int, default=SceneLearning.steps)
    given = arguments.parse_args()
    start = time.perf_counter()

    def told(step: int, loss: float) -> None:
        if step % 250 == 0:
            print(
                f"step {step:,}: loss {loss:.3f}, {time.perf_counter() - start:.0f} s", flush=True
            )

    learning = SceneLearning(SceneGridConfig(size=given.size), steps=given.steps)
    judge = train_scene_judge(learning, told=told)
    judge.record["seconds"] = round(time.perf_counter() - start)
    judge.save(given.folder)
    print(json.dumps(judge.record["metrics"], indent=1))
