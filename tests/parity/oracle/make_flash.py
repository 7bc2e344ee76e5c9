"""Makes goldens/t3_flash.{json,npz}: block decoding of the published package on a small synthetic T3.

    PYTHONPATH=. python tests/parity/oracle/make_flash.py

Needs the published packages chatterbox-tts 0.1.7 and chatterbox-flash 0.1.0, which this project does not. Where it
draws, the uniform numbers are the recipe's, numbered by case and step, and a token is the first whose cumulative
probability exceeds its number.
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chatterbox.models.t3 import llama_configs
from chatterbox.models.t3.modules.perceiver import Perceiver
from chatterbox.models.t3.modules.t3_config import T3Config
from chatterbox_flash import model as published

HERE = Path(__file__).parent
recipe = runpy.run_path(str(HERE / "weights_recipe.py"))
COMPONENT = "t3_flash_small"
SIZES = {"hidden_size": 128, "num_layers": 3, "num_heads": 2, "head_dim": 64, "intermediate_size": 256}
# A small vocabulary, so that an end of speech is drawn now and then.
TOKENS = {"speech_vocab_size": 96, "start_speech_token": 90, "stop_speech_token": 91}
LENGTHS = {"text_positions": 130, "speech_positions": 260, "speech_prompt_tokens": 20}
# Text tokens (start and stop not counted), most speech tokens, guidance, time_shift_tau. The first are greedy, without
# noise on positions; those of `DRAWN` have the published temperatures.
CASES = [
    (5, 48, 1.0, 0.1),
    (23, 60, 1.0, 0.1),
    (60, 100, 1.0, 0.1),
    (41, 160, 1.0, 0.1),
    (5, 48, 0.0, 0.1),
    (23, 60, 0.0, 0.1),
    (60, 100, 0.0, 0.1),
    (17, 40, 2.5, 0.1),
    (30, 60, 1.0, 3.0),
    (60, 100, 0.0, 3.0),
    (12, 7, 1.0, 0.1),
]
DRAWN = [(5, 48, 1.0, 0.1), (23, 60, 1.0, 0.1), (60, 100, 0.5, 0.1), (41, 160, 0.0, 0.1)]
TEMPERATURE, POSITION_TEMPERATURE = 0.6, 5.0


def make_model() -> Any:
    sizes = llama_configs.LLAMA_CONFIGS["Llama_520M"]
    sizes |= {
        "hidden_size": SIZES["hidden_size"],
        "num_hidden_layers": SIZES["num_layers"],
        "num_attention_heads": SIZES["num_heads"],
        "num_key_value_heads": SIZES["num_heads"],
        "head_dim": SIZES["head_dim"],
        "intermediate_size": SIZES["intermediate_size"],
    }
    hp = T3Config()
    hp.speech_tokens_dict_size = TOKENS["speech_vocab_size"]
    hp.start_speech_token, hp.stop_speech_token = TOKENS["start_speech_token"], TOKENS["stop_speech_token"]
    hp.max_text_tokens, hp.max_speech_tokens = LENGTHS["text_positions"] - 2, LENGTHS["speech_positions"] - 4
    hp.speech_cond_prompt_len = LENGTHS["speech_prompt_tokens"]
    model = published.ChatterboxFlashT3(hp)
    # The published one has the published width built in.
    model.cond_enc.perceiver = Perceiver(
        pre_attention_query_size=sizes["hidden_size"], embedding_dim=sizes["hidden_size"]
    )
    shapes = {key: (list(value.shape), "float32") for key, value in model.state_dict().items()}
    model.load_state_dict(recipe["state_dict"](shapes, COMPONENT))
    return model.eval()


class Draws:
    """Stands for torch's random functions: the recipe's numbers, one set a step."""

    def __init__(self, case: int):
        self.case, self.step = case, 0

    def multinomial(self, probabilities: torch.Tensor, num_samples: int) -> torch.Tensor:
        self.tokens, self.positions = recipe["uniform"](f"{COMPONENT}/draws{self.case}/{self.step}", 32).reshape(2, 16)
        self.step += 1
        cumulative = probabilities.cumsum(dim=-1, dtype=torch.float64)
        u = torch.from_numpy(self.tokens[: len(cumulative)])[:, None]
        return torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)

    def rand_like(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.positions[: len(x)]).to(x)


def main() -> None:
    model = make_model()
    speaker = torch.from_numpy(recipe["noise"](f"{COMPONENT}/speaker", 256))[None]
    clip = torch.from_numpy(recipe["randint"](f"{COMPONENT}/clip", LENGTHS["speech_prompt_tokens"], 90))[None]
    condition = published.T3Cond(
        speaker_emb=speaker, cond_prompt_speech_tokens=clip, emotion_adv=0.5 * torch.ones(1, 1, 1)
    )
    seen: list[tuple[int, torch.Tensor]] = []
    step = published._pmi_count_early_step_unmask

    def recording(logits: torch.Tensor, tokens: torch.Tensor, **given: Any) -> Any:
        seen.append((given["k"], logits.clone()))
        return step(logits, tokens, **given)

    published._pmi_count_early_step_unmask = recording
    cases, arrays = [], {}
    for number, (length, most, guidance, tau) in enumerate([*CASES, *DRAWN]):
        drawn = number >= len(CASES)
        draws = Draws(number)
        torch.multinomial, torch.rand_like = draws.multinomial, draws.rand_like
        text = torch.from_numpy(recipe["randint"](f"{COMPONENT}/text{length}", length, 254))
        ids = torch.cat([torch.tensor([model.hp.start_text_token]), text, torch.tensor([model.hp.stop_text_token])])
        seen.clear()
        tokens = model.generate(
            t3_cond=condition,
            text_tokens=ids[None],
            total_speech_len=most,
            temperature=TEMPERATURE if drawn else 0.0,
            position_temperature=POSITION_TEMPERATURE if drawn else 0.0,
            cfg_scale=guidance,
            time_shift_tau=tau,
            backend="torch",
        )[0]
        # What stands before an end of speech may still be masked; it is left out before it is voiced.
        spoken = [int(token) for token in tokens if token != model.mask_token_id]
        steps = [k for k, _ in seen]
        blocks = [i for i, k in enumerate(steps) if k == 0]
        counts = [end - begin for begin, end in zip(blocks, [*blocks[1:], len(steps)], strict=True)]
        cases.append(
            {
                "text_tokens": text.tolist(),
                "max_tokens": most,
                "cfg_weight": guidance,
                "time_shift": tau,
                "temperature": TEMPERATURE if drawn else 0.0,
                "tokens": spoken,
                "steps": counts,
                "stopped": len(tokens) < most,
            }
        )
        arrays[f"logits_{number}"] = seen[0][1].log_softmax(-1).numpy()
        print(number, len(spoken), counts, spoken[:8])
    arrays["prior"] = model._compute_uncond_block_prior(16, 90, 96, torch.float32, torch.device("cpu")).numpy()
    arrays |= {"speaker": speaker.numpy(), "clip": clip.numpy()}
    facts = {"component": COMPONENT, "config": {**SIZES, **TOKENS, **LENGTHS}, "cases": cases}
    goldens = HERE.parent / "goldens"
    (goldens / "t3_flash.json").write_text(json.dumps(facts, indent=1) + "\n")
    np.savez_compressed(goldens / "t3_flash.npz", **arrays)


if __name__ == "__main__":
    main()
