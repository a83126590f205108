"""diffusers' own flow-matching pipelines, run with anystep's scheduler in place of diffusers', give the same images.

The models are tiny, random and seeded; text is given as embeddings. As in test_pipelines.py, what is tested is every call
that a pipeline makes of its scheduler.
"""

import json

import numpy as np
import pytest

pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import anystep  # noqa: E402

pytestmark = [
    # diffusers makes NumPy arrays of tensors in a way that NumPy 2 deprecates.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

# Images lie in [0, 1]. Measured: at most 2e-6, float32's rounding in two orders of operations.
TIGHT = 1e-5
NAME = "FlowMatchEulerDiscreteScheduler"

FLUX = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
"""What FLUX.1-dev's scheduler_config.json says; SD3's and LTX-Video's below."""
SD3 = {"shift": 3.0}
LTX = FLUX | {"use_dynamic_shifting": False, "shift": 1.0, "shift_terminal": 0.1}


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def embeddings(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed))


def vae():
    return diffusers.AutoencoderKL(
        sample_size=16,
        latent_channels=4,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    ).eval()


@pytest.fixture(scope="module")
def flux():
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    absent = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return {"transformer": transformer, "vae": vae(), **absent}


@pytest.fixture(scope="module")
def sd3():
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
    ).eval()
    names = [f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")]
    return {"transformer": transformer, "vae": vae(), **dict.fromkeys(names)}


@pytest.fixture(scope="module")
def ltx():
    torch.manual_seed(0)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    ).eval()
    video = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    ).eval()
    video.use_framewise_encoding = video.use_framewise_decoding = False
    return {"transformer": transformer, "vae": video, "text_encoder": None, "tokenizer": None}


def flux_images(parts, scheduler, **options):
    prompt = {
        "prompt_embeds": embeddings(1, 6, 32),
        "pooled_prompt_embeds": embeddings(1, 32, seed=2),
    }
    size = {"height": 16, "width": 16, "num_inference_steps": 5}
    image = options.pop("image", None)
    kind = diffusers.FluxPipeline if image is None else diffusers.FluxImg2ImgPipeline
    pipe = quietly(kind(**parts, scheduler=scheduler))
    given = {} if image is None else {"image": image}
    return pipe(output_type="np", generator=seeded(), **{**prompt, **size, **given, **options}).images


def sd3_images(parts, scheduler, **options):
    prompt = {
        "prompt_embeds": embeddings(1, 6, 32),
        "pooled_prompt_embeds": embeddings(1, 64, seed=2),
        "negative_prompt_embeds": embeddings(1, 6, 32, seed=3),
        "negative_pooled_prompt_embeds": embeddings(1, 64, seed=4),
    }
    size = {"height": 16, "width": 16, "num_inference_steps": 5, "guidance_scale": 4.0}
    image = options.pop("image", None)
    kind = diffusers.StableDiffusion3Pipeline if image is None else diffusers.StableDiffusion3Img2ImgPipeline
    pipe = quietly(kind(**parts, scheduler=scheduler))
    given = {} if image is None else {"image": image}
    return pipe(output_type="np", generator=seeded(), **{**prompt, **size, **given, **options}).images


def ltx_video(parts, scheduler, **options):
    """LTXConditionPipeline steps every token from its own level: frames that are given stay as they are."""
    prompt = {
        "prompt_embeds": embeddings(1, 6, 32),
        "prompt_attention_mask": torch.ones(1, 6),
        "negative_prompt_embeds": embeddings(1, 6, 32, seed=3),
        "negative_prompt_attention_mask": torch.ones(1, 6),
    }
    size = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 5, "guidance_scale": 3.0}
    pipe = quietly(diffusers.LTXConditionPipeline(**parts, scheduler=scheduler))
    return pipe(output_type="np", generator=seeded(), **{**prompt, **size, **options}).frames


def quietly(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pair(config):
    return [getattr(library, NAME)(**config) for library in (diffusers, anystep)]


def check_same(theirs, ours, atol=TIGHT):
    assert theirs.shape == ours.shape and theirs.dtype == ours.dtype
    # Not flat, and not clamped to black and white, where anything would agree.
    assert theirs.std() > 0.01 and np.mean((theirs > 0) & (theirs < 1)) > 0.15
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


IMAGE = {"image": torch.rand(1, 3, 16, 16, generator=seeded(2))}
RESPACED = {"use_karras_sigmas": True}
CASES = [
    ("flux", FLUX, {}),
    ("flux", FLUX | RESPACED, {}),
    ("flux", FLUX | {"time_shift_type": "linear"}, {}),
    ("flux", {}, {"sigmas": [1.0, 0.6, 0.2]}),
    ("flux", {"stochastic_sampling": True}, {}),
    ("flux", FLUX, IMAGE | {"strength": 0.7}),
    ("flux", {"shift": 1.0}, IMAGE | {"strength": 0.4}),
    ("sd3", SD3, {}),
    ("sd3", SD3 | {"use_exponential_sigmas": True}, {}),
    ("sd3", SD3, {"num_inference_steps": 1}),
    ("sd3", FLUX, {}),
    ("sd3", SD3, {"guidance_scale": 1.0}),
    ("sd3", SD3, IMAGE | {"strength": 0.6}),
    ("sd3", SD3, IMAGE | {"strength": 1.0}),
    ("sd3", FLUX | RESPACED, IMAGE | {"strength": 0.5}),
]
RUNS = {"flux": flux_images, "sd3": sd3_images}


@pytest.mark.parametrize(("name", "config", "options"), CASES)
def test_pipelines_make_the_same_images(name, config, options, request):
    parts, found = request.getfixturevalue(name), []
    for each in pair(config):
        torch.manual_seed(3)  # the noise of stochastic sampling, for which these pipelines pass no generator
        found.append(RUNS[name](parts, each, **options))
    check_same(*found)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    "config", [{"flow_shift": 3.0}, {"use_dynamic_shifting": True, "solver_order": 3}], ids=str
)
def test_another_solver_makes_the_same_images(name, config, request):
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", **config}
    parts = request.getfixturevalue(name)
    schedulers = [library.UniPCMultistepScheduler(**config) for library in (diffusers, anystep)]
    check_same(*(RUNS[name](parts, each) for each in schedulers))


@pytest.mark.parametrize("config", [SD3, LTX], ids=["shift", "LTX"])
@pytest.mark.parametrize("conditioned", [False, True])
def test_ltx_steps_each_token_from_its_own_level(config, conditioned, ltx):
    given = (
        {"video": torch.rand(1, 1, 3, 32, 32, generator=seeded(5)), "strength": 0.6} if conditioned else {}
    )
    check_same(*(ltx_video(ltx, each, **given) for each in pair(config)))


@pytest.mark.parametrize("name", RUNS)
def test_a_small_fault_would_be_seen(name, request):
    parts = request.getfixturevalue(name)
    images = [RUNS[name](parts, each) for each in (pair(SD3)[0], pair({"shift": 3.01})[1])]
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_same(*images)


def test_tokens_that_step_the_other_way_would_be_seen(ltx):
    theirs, ours = pair({})
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_same(*(ltx_video(ltx, each) for each in (theirs, ours.corrected("flow-per-token-sign"))))


def test_a_pipeline_runs_again_with_other_numbers(sd3):
    def images(scheduler):
        found = [sd3_images(sd3, scheduler, num_inference_steps=steps) for steps in (4, 3, 4)]
        np.testing.assert_array_equal(found[0], found[2])
        return np.concatenate(found)

    check_same(*map(images, pair(SD3)))


def test_a_scheduler_is_swapped_by_its_config(flux):
    theirs = pair(FLUX)[0]
    ours = anystep.FlowMatchEulerDiscreteScheduler.from_config(theirs.config)
    assert ours.config.base_shift == 0.5 and ours.config.use_dynamic_shifting is True
    back = diffusers.FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    assert back.config.shift == 3.0
    check_same(*(flux_images(flux, each) for each in (back, ours)))


def test_a_saved_pipeline_loads_its_scheduler(flux, tmp_path, monkeypatch):
    # diffusers saves components of the libraries in this table only; where it loads from is in the folder.
    table = diffusers.pipelines.pipeline_loading_utils.LOADABLE_CLASSES
    scheduler = pair(FLUX)[1]
    with monkeypatch.context() as patch:
        patch.setitem(table, "anystep", {"SchedulerMixin": ["save_pretrained", "from_pretrained"]})
        quietly(diffusers.FluxPipeline(**flux, scheduler=scheduler)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == ["anystep", NAME]
    again = anystep.FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    np.testing.assert_array_equal(flux_images(flux, again), flux_images(flux, scheduler))
