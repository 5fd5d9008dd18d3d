"""Schedulers of released models: which settings are read, and that no other is taken for one of them."""

import json

import pytest

from dit_video.core.errors import BadInput
from dit_video.weights.folder import open_model, save_model

# scheduler_config.json of Wan2.1-T2V-1.3B-Diffusers
RELEASED = {
    "_class_name": "UniPCMultistepScheduler", "_diffusers_version": "0.33.0.dev0", "beta_end": 0.02,
    "beta_schedule": "linear", "beta_start": 0.0001, "disable_corrector": [], "dynamic_thresholding_ratio": 0.995,
    "final_sigmas_type": "zero", "flow_shift": 3.0, "lower_order_final": True, "num_train_timesteps": 1000,
    "predict_x0": True, "prediction_type": "flow_prediction", "rescale_betas_zero_snr": False, "sample_max_value": 1.0,
    "solver_order": 2, "solver_p": None, "solver_type": "bh2", "steps_offset": 0, "thresholding": False,
    "timestep_spacing": "linspace", "trained_betas": None, "use_beta_sigmas": False, "use_exponential_sigmas": False,
    "use_flow_sigmas": True, "use_karras_sigmas": False,
}  # fmt: skip
EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
DPM = RELEASED | {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++",
                  "solver_type": "midpoint", "euler_at_final": False, "lambda_min_clipped": None}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    path = save_model(tiny, tmp_path_factory.mktemp("models") / "tiny")
    (path / "manifest.json").unlink()
    return path


@pytest.mark.parametrize(
    "config, said",
    [
        (RELEASED, None),
        (
            RELEASED | {"timestep_spacing": "trailing", "beta_schedule": "scaled_linear", "use_karras_sigmas": None},
            None,
        ),
        (RELEASED | {"use_dynamic_shifting": False, "time_shift_type": "exponential", "shift_terminal": None}, None),
        (RELEASED | {"solver_type": "midpoint"}, None),
        (EULER | {"base_shift": 0.5, "shift_terminal": None, "stochastic_sampling": False}, None),
        (DPM, None),
        (RELEASED | {"solver_order": 3}, "solver_order is 3, and this solver has 2"),
        (RELEASED | {"solver_type": "bh1"}, 'solver_type is "bh1", and this solver has "bh2"'),
        (RELEASED | {"predict_x0": False}, "predict_x0 is false, and this solver has true"),
        (RELEASED | {"use_karras_sigmas": True}, "use_karras_sigmas is true"),
        (RELEASED | {"use_flow_sigmas": False}, "use_flow_sigmas is false"),
        (RELEASED | {"disable_corrector": [0]}, r"disable_corrector is \[0\], and this solver has \[\]"),
        (RELEASED | {"final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        (RELEASED | {"num_train_timesteps": 100}, "num_train_timesteps is 100"),
        (DPM | {"algorithm_type": "sde-dpmsolver++"}, r'has "dpmsolver\+\+"'),
        (DPM | {"solver_type": "heun"}, "solver_type"),
        (EULER | {"use_dynamic_shifting": True}, "use_dynamic_shifting is true, and this solver has false or null"),
        (EULER | {"shift_terminal": 0.1}, "shift_terminal is 0.1"),
        (EULER | {"stochastic_sampling": True}, "stochastic_sampling"),
    ],
)
def test_settings_of_a_scheduler_that_no_solver_here_has_are_refused(config, said, folder):
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    if said is None:
        assert open_model(folder).scheduler == config
        return
    with pytest.raises(BadInput, match=rf"scheduler_config\.json: .*{said}"):
        open_model(folder)


@pytest.mark.parity
def test_what_diffusers_writes_of_its_schedulers_is_read(folder):
    schedulers = pytest.importorskip("diffusers").schedulers
    flow = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    for kind, how in (
        ("UniPCMultistepScheduler", flow), ("DPMSolverMultistepScheduler", flow),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ):  # fmt: skip
        getattr(schedulers, kind)(**how).save_pretrained(folder / "scheduler")
        assert open_model(folder).scheduler["_class_name"] == kind
