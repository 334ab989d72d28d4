"""Makes a Stable Diffusion pipeline of a few thousand random weights out of diffusers' own classes: `FOLDER`.

The tokenizer knows single letters only, so nothing has to be downloaded. Run in a process of its own, since torch and
diffusers are heavy and warn while they are imported.
"""

from __future__ import annotations

import string
import sys

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTH = 32  # of the text's vectors
CHANNELS = (8, 16)


def main(folder: str) -> None:
    torch.manual_seed(0)
    begin, end = "<|startoftext|>", "<|endoftext|>"
    letters = string.ascii_lowercase
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), begin, end]
    ids = {token: index for index, token in enumerate(vocabulary)}
    text = CLIPTextConfig(
        vocab_size=len(ids),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=ids[begin],
        eos_token_id=ids[end],
        pad_token_id=ids[end],
    )
    unet = UNet2DConditionModel(
        block_out_channels=CHANNELS,
        layers_per_block=1,
        sample_size=8,
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),  # three halvings: 8 pixels to one latent, as the real one
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(vocab=ids, merges=[], model_max_length=77),
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1])
