"""diffusers' own pipelines, run with anystep's schedulers in place of diffusers', give the same images.

The models are tiny, random and seeded: what is tested is every call that a pipeline makes of its scheduler.
"""

import json

import numpy as np
import pytest

pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import anystep  # noqa: E402

# Images lie in [0, 1]. Measured: at most 4e-6, float32's rounding in two orders of operations; 4e-5 for grids made
# from the smallest or the largest sigma of a table, which diffusers computes as (1 - abar) / abar in float32: beside
# diffusers' own code in float64 the images of these differ by at most 2e-6.
TIGHT, LOOSE = 1e-5, 1e-4

pytestmark = [
    # diffusers' sigma schedulers make NumPy arrays of tensors in a way that NumPy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

STABLE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
"""What Stable Diffusion's scheduler_config.json says, for whichever class it is handed to."""

V = {"prediction_type": "v_prediction"}
SAMPLE = {"prediction_type": "sample"}
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
TRAILING = {"timestep_spacing": "trailing"}
LINSPACE = {"timestep_spacing": "linspace"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
ZERO_SNR = {**V, **TRAILING, "rescale_betas_zero_snr": True}

LATENT_CASES = [
    ("DDIMScheduler", {}, {}),
    ("DDIMScheduler", {}, {"eta": 0.6}),
    ("DDIMScheduler", V, {}),
    ("DDIMScheduler", ZERO_SNR, {"eta": 1.0, "guidance_rescale": 0.7}),
    ("DDPMScheduler", {}, {}),
    ("DDPMScheduler", V, {}),
    ("DDPMScheduler", {"variance_type": "fixed_large"}, {}),
    ("PNDMScheduler", {}, {}),
    ("PNDMScheduler", V, {}),
    ("PNDMScheduler", TRAILING, {}),
    ("LMSDiscreteScheduler", {}, {}),
    ("LMSDiscreteScheduler", KARRAS, {}),
    ("LMSDiscreteScheduler", V, {}),
    ("LMSDiscreteScheduler", {**V, **KARRAS}, {}),
    ("EulerDiscreteScheduler", {}, {}),
    ("EulerDiscreteScheduler", KARRAS, {}),
    ("EulerDiscreteScheduler", EXPONENTIAL, {}),
    ("EulerDiscreteScheduler", V, {}),
    ("EulerDiscreteScheduler", {**V, **KARRAS}, {}),
    ("EulerDiscreteScheduler", LINSPACE, {}),
    ("EulerDiscreteScheduler", ZERO_SNR, {"guidance_rescale": 0.7}),
    ("HeunDiscreteScheduler", {}, {}),
    ("HeunDiscreteScheduler", {**V, **KARRAS}, {}),
    ("EulerAncestralDiscreteScheduler", {}, {}),
    ("EulerAncestralDiscreteScheduler", V, {}),
    ("EulerAncestralDiscreteScheduler", TRAILING, {}),
    ("DPMSolverMultistepScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {**KARRAS, "algorithm_type": "sde-dpmsolver++"}, {}),
    ("DPMSolverMultistepScheduler", {**FLOW, "flow_shift": 3.0, "solver_order": 3}, {}),
    ("UniPCMultistepScheduler", {}, {}),
    ("UniPCMultistepScheduler", {**V, **KARRAS, "solver_order": 3}, {}),
]
NAMES = sorted({case[0] for case in LATENT_CASES})
PIXEL_CASES = [
    ("DDPM", {}, {}),
    ("DDPM", V, {}),
    ("DDPM", {"variance_type": "fixed_large"}, {}),
    ("DDPM", {"thresholding": True}, {}),
    ("DDIM", {}, {"eta": 0.0}),
    ("DDIM", {}, {"eta": 0.7}),
    ("DDIM", {}, {"eta": 0.7, "use_clipped_model_output": True}),
    ("DDIM", SAMPLE, {"eta": 0.7}),
    ("DDIM", V, {"eta": 1.0}),
]


def name_of(case):
    return "-".join([case[0], *(f"{key}={value}" for part in case[1:] for key, value in part.items())])


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pixel_unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()
    vae = diffusers.AutoencoderKL(
        sample_size=16,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()
    none = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return {"unet": unet, "vae": vae, **none, "requires_safety_checker": False}


def quietly(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompt():
    """Embeddings of a prompt and of its negative, so that guidance is on."""
    found = torch.randn(2, 1, 5, 16, generator=seeded(1))
    return {"prompt_embeds": found[0], "negative_prompt_embeds": found[1], "guidance_scale": 4.0}


def text_to_image(pipe, **options):
    options = {"num_inference_steps": 5, "generator": seeded(), **prompt(), **options}
    return pipe(output_type="np", **options).images


def image_to_image(pipe, **options):
    image = torch.rand(1, 3, 16, 16, generator=seeded(2))
    options = {"num_inference_steps": 5, "strength": 0.7, "generator": seeded(), **prompt(), **options}
    return pipe(image=image, output_type="np", **options).images


def pair(name, config):
    """diffusers' scheduler and anystep's of one config."""
    return [getattr(library, name).from_config({**STABLE, **config}) for library in (diffusers, anystep)]


def tolerance(name, config):
    """LOOSE where a grid is made from the ends of diffusers' float32 sigmas."""
    ends = {"use_karras_sigmas", "use_exponential_sigmas", "rescale_betas_zero_snr"}
    return LOOSE if ends & set(config) and not name.startswith("DD") else TIGHT


def check_same(theirs, ours, atol=TIGHT):
    assert theirs.shape == ours.shape and theirs.dtype == ours.dtype
    # Not flat, and not clamped to black and white, where anything would agree.
    assert theirs.std() > 0.02 and np.mean((theirs > 0) & (theirs < 1)) > 0.15
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


def loaded(folder):
    absent = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    options = {"requires_safety_checker": False, "low_cpu_mem_usage": False}
    return quietly(diffusers.StableDiffusionPipeline.from_pretrained(folder, **absent, **options))


def public(scheduler):
    """What a config file holds, without the marks of what was left at its default."""
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


@pytest.mark.parametrize(("name", "config", "options"), PIXEL_CASES, ids=map(name_of, PIXEL_CASES))
def test_pixel_pipelines_make_the_same_images(name, config, options, pixel_unet):
    def images(library):
        scheduler = getattr(library, f"{name}Scheduler")(**config)
        pipe = quietly(getattr(diffusers, f"{name}Pipeline")(unet=pixel_unet, scheduler=scheduler))
        pipe.scheduler = scheduler  # DDIMPipeline makes a DDIMScheduler of diffusers' of any config
        assert type(pipe.scheduler) is type(scheduler)
        return pipe(
            batch_size=2, generator=seeded(), num_inference_steps=5, output_type="np", **options
        ).images

    check_same(images(diffusers), images(anystep))


def retired():
    """Pipelines that diffusers has put aside, and options of each."""
    hole = {
        "image": torch.rand(1, 3, 8, 8, generator=seeded(2)) * 2 - 1,
        "mask_image": (torch.rand(1, 1, 8, 8, generator=seeded(3)) > 0.5).float(),
        "num_inference_steps": 6,
        "jump_length": 2,
        "jump_n_sample": 2,
    }
    few = {"num_inference_steps": 5}
    yield "PNDM", {"beta_end": 0.001}, {"num_inference_steps": 12}
    yield "PNDM", {"beta_end": 0.001, "skip_prk_steps": True}, few
    yield "ScoreSdeVe", {"sigma_max": 0.5}, few
    yield "KarrasVe", {"sigma_max": 1.0, "sigma_min": 0.01, "s_min": 0.0}, few
    yield "RePaint", {}, {"eta": 0.0, **hole}
    yield "RePaint", {}, {"eta": 0.5, **hole}


@pytest.mark.filterwarnings("ignore:The preprocess method is deprecated:FutureWarning")
@pytest.mark.parametrize(("name", "config", "options"), list(retired()))
def test_retired_pipelines_make_the_same_images(name, config, options, pixel_unet, monkeypatch):
    forward = pixel_unet.forward

    def told(sample, timestep, *args, **kwargs):
        # KarrasVe's levels are numbers here and tensors there: UNet2DModel would cut a number to an integer.
        return forward(sample, torch.as_tensor(timestep), *args, **kwargs)

    def images(library):
        scheduler = getattr(library, f"{name}Scheduler")(**config)
        pipe = quietly(getattr(diffusers, f"{name}Pipeline")(unet=pixel_unet, scheduler=scheduler))
        pipe.scheduler = scheduler  # some make a scheduler of diffusers' of any config
        return pipe(generator=seeded(), output_type="np", **options).images

    if name == "KarrasVe":
        monkeypatch.setattr(pixel_unet, "forward", told)
    check_same(images(diffusers), images(anystep))


def test_ddim_pipeline_converts_the_config_of_any_scheduler(pixel_unet):
    def images(library):
        scheduler = library.DDPMScheduler(**V, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing")
        pipe = quietly(diffusers.DDIMPipeline(unet=pixel_unet, scheduler=scheduler))
        assert type(pipe.scheduler) is diffusers.DDIMScheduler
        return pipe(generator=seeded(), num_inference_steps=5, output_type="np").images

    np.testing.assert_array_equal(images(diffusers), images(anystep))


@pytest.mark.parametrize("run", [text_to_image, image_to_image])
@pytest.mark.parametrize(("name", "config", "options"), LATENT_CASES, ids=map(name_of, LATENT_CASES))
def test_stable_diffusion_makes_the_same_images(run, name, config, options, parts):
    if run is image_to_image:
        options = {key: value for key, value in options.items() if key != "guidance_rescale"}
        kind = diffusers.StableDiffusionImg2ImgPipeline
    else:
        kind = diffusers.StableDiffusionPipeline
    theirs, ours = (run(quietly(kind(**parts, scheduler=each)), **options) for each in pair(name, config))
    check_same(theirs, ours, tolerance(name, config))


@pytest.mark.parametrize("name", NAMES)
def test_a_small_fault_would_be_seen(name, parts):
    schedulers = pair(name, {})[0], pair(name, {"beta_end": 0.0121})[1]
    images = [
        text_to_image(quietly(diffusers.StableDiffusionPipeline(**parts, scheduler=each)))
        for each in schedulers
    ]
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_same(*images, LOOSE)


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_runs_again_with_other_numbers(name, parts):
    def images(scheduler):
        pipe = quietly(diffusers.StableDiffusionPipeline(**parts, scheduler=scheduler))
        found = [text_to_image(pipe, num_inference_steps=steps) for steps in (4, 3, 4)]
        np.testing.assert_array_equal(found[0], found[2])
        generators = [seeded(seed) for seed in (3, 4)]
        found.append(text_to_image(pipe, generator=generators, num_images_per_prompt=2))
        return np.concatenate(found)

    check_same(*map(images, pair(name, {})))


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("EulerDiscreteScheduler", {"timesteps": [901, 500, 120, 3]}),
        ("EulerDiscreteScheduler", {"sigmas": [14.0, 5.0, 1.2, 0.1, 0.0]}),
        ("HeunDiscreteScheduler", {"timesteps": [901, 500, 120, 3]}),
        ("DPMSolverMultistepScheduler", {"timesteps": [901, 500, 120, 3]}),
        ("DDPMScheduler", {"timesteps": [901, 500, 120, 3]}),
    ],
)
def test_pipelines_take_custom_levels(name, levels, parts):
    def images(scheduler):
        pipe = quietly(diffusers.StableDiffusionPipeline(**parts, scheduler=scheduler))
        return text_to_image(pipe, **levels)

    check_same(*map(images, pair(name, {})))


@pytest.mark.parametrize("strength", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_image_to_image_begins_anywhere(name, strength, parts):
    def images(scheduler):
        pipe = quietly(diffusers.StableDiffusionImg2ImgPipeline(**parts, scheduler=scheduler))
        return image_to_image(pipe, strength=strength)

    check_same(*map(images, pair(name, {})))


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning")
@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler"])
def test_an_outdated_config_is_put_right_by_the_pipeline(name, parts):
    def images(scheduler):
        pipe = quietly(diffusers.StableDiffusionPipeline(**parts, scheduler=scheduler))
        assert pipe.scheduler.config.steps_offset == 1
        assert not pipe.scheduler.config.get("clip_sample", False)
        return text_to_image(pipe)

    check_same(*map(images, pair(name, {"steps_offset": 0, "clip_sample": True})))


@pytest.mark.parametrize("name", NAMES)
def test_a_scheduler_is_swapped_by_its_config(name, parts):
    pipe = quietly(diffusers.StableDiffusionPipeline(**parts, scheduler=pair("PNDMScheduler", V)[0]))
    config = pipe.scheduler.config
    images = []
    for library in (diffusers, anystep):
        pipe.scheduler = getattr(library, name).from_config(config)
        assert (
            pipe.scheduler.config.beta_end == 0.012
            and pipe.scheduler.config.prediction_type == "v_prediction"
        )
        images.append(text_to_image(pipe))
        pipe.scheduler = diffusers.PNDMScheduler.from_config(pipe.scheduler.config)
        assert pipe.scheduler.config.skip_prk_steps
    check_same(*images)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_pipeline_loads_its_scheduler(name, parts, tmp_path, monkeypatch):
    # diffusers saves components of the libraries in this table only; where it loads from is in the folder.
    table = diffusers.pipelines.pipeline_loading_utils.LOADABLE_CLASSES
    methods = {"SchedulerMixin": ["save_pretrained", "from_pretrained"]}
    scheduler = pair(name, V)[1]
    with monkeypatch.context() as patch:
        patch.setitem(table, "anystep", methods)
        pipe = quietly(diffusers.StableDiffusionPipeline(**parts, scheduler=scheduler))
        pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == ["anystep", name]
    again = loaded(tmp_path)
    assert type(again.scheduler) is getattr(anystep, name)
    assert public(again.scheduler) == public(scheduler)
    np.testing.assert_array_equal(text_to_image(again), text_to_image(pipe))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_pipeline_of_diffusers_runs_with_a_scheduler_of_anystep(name, parts, tmp_path):
    original, _ = pair(name, V)
    quietly(diffusers.StableDiffusionPipeline(**parts, scheduler=original)).save_pretrained(tmp_path)
    pipe = loaded(tmp_path)
    theirs = text_to_image(pipe)
    # As an argument of from_pretrained diffusers refuses it: there it takes subclasses of its own SchedulerMixin only.
    pipe.scheduler = getattr(anystep, name).from_pretrained(tmp_path, subfolder="scheduler")
    assert public(pipe.scheduler) == public(original)
    check_same(theirs, text_to_image(pipe))
