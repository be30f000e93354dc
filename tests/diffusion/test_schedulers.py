"""`scheduler_config.json`, beside the one that diffusers writes."""

import pytest
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from bedstone.diffusion.process import Discrete, Flow
from bedstone.diffusion.schedulers import read_scheduler, write_scheduler
from bedstone.diffusion.targets import target
from bedstone.errors import BedstoneError


def test_a_folder_of_diffusers_is_read(tmp_path):
    DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        algorithm_type="sde-dpmsolver++",
    ).save_pretrained(tmp_path)
    expected = Discrete(schedule="squaredcos_cap_v2"), target("v_prediction"), "dpm_solver_sde"
    assert read_scheduler(tmp_path) == expected
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path)
    assert read_scheduler(tmp_path) == (Flow(3.0), target("flow_prediction"), "euler")


def test_a_folder_of_ours_opens_in_diffusers(tmp_path):
    process = Discrete(500, "scaled_linear", 0.001, 0.01)
    name = write_scheduler(tmp_path, process, target("epsilon"), "dpm_solver_2m")
    assert name == "DPMSolverMultistepScheduler"
    theirs = DPMSolverMultistepScheduler.from_pretrained(tmp_path)
    assert theirs.config.num_train_timesteps == 500
    assert read_scheduler(tmp_path) == (process, target("epsilon"), "dpm_solver_2m")


def test_what_is_wrong_names_the_file(tmp_path):
    with pytest.raises(BedstoneError, match=r"scheduler_config\.json"):
        read_scheduler(tmp_path)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "PNDMScheduler"}')
    with pytest.raises(BedstoneError, match=r"scheduler_config.json: _class_name: 'PNDMScheduler'"):
        read_scheduler(tmp_path)
    (tmp_path / "scheduler_config.json").write_text("[]")
    with pytest.raises(BedstoneError, match=r"scheduler_config.json: .*expected a JSON object"):
        read_scheduler(tmp_path)
