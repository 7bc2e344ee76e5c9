"""Kokoro-82M in plain PyTorch: phonemes and a style to audio, for a batch at once.

The teacher of the corpus. The architecture is that of StyleTTS 2 with an iSTFT vocoder, in the sizes of Kokoro v1.0
(Apache-2.0); `training.corpus.kokoro_weights` fills it. A batch holds utterances of equal phoneme count, so the text
side needs no masks. Their durations differ, so everything behind the alignment is masked: padding is zero before every
convolution, and normalisation over time sees the utterance's own frames alone. So each utterance sounds as it does
alone, but for the noise of the source.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RATE = 24_000
SAMPLES_PER_FRAME = 600  # 40 frames a second
HARMONICS = 9
FFT, HOP = 20, 5
VOICED_HZ = 10.0  # an F0 below this is unvoiced
LOWEST_HZ, HIGHEST_HZ = 50.0, 480.0  # below, F0 is on its way to or from a pause and is no pitch
STYLE = 128  # of the 256 values of a style, the first half is timbre, the second prosody


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """(batch, 1, frames) float: 1 inside each utterance, 0 in its padding."""
    return (torch.arange(frames, device=lengths.device) < lengths[:, None])[:, None].float()


class AdaIn(nn.Module):
    """Instance normalisation over an utterance's own frames; a style gives scale and shift. Padding stays zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Linear(STYLE, 2 * channels)

    def forward(self, x: Tensor, style: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        gamma, beta = self.fc(style)[..., None].chunk(2, 1)
        # Zero padding adds nothing to the sums, so the padded moments only want another divisor.
        share = x.shape[-1] / lengths[:, None, None].to(x.dtype)
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        square = (variance + mean * mean) * share
        mean = mean * share
        scale = (1 + gamma) * torch.rsqrt((square - mean * mean).clamp(min=0) + 1e-5)
        return (x * scale).addcmul_(beta - mean * scale, mask)


class AdaInBlock(nn.Module):
    """Two convolutions with `AdaIn` and a shortcut; `upsample` doubles the frames."""

    def __init__(self, inputs: int, outputs: int, upsample: bool = False):
        super().__init__()
        self.norm1, self.norm2 = AdaIn(inputs), AdaIn(outputs)
        self.conv1 = nn.Conv1d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=1)
        self.conv1x1 = nn.Conv1d(inputs, outputs, 1, bias=False) if inputs != outputs else None
        self.pool = (
            nn.ConvTranspose1d(inputs, inputs, 3, stride=2, padding=1, output_padding=1, groups=inputs)
            if upsample
            else None
        )

    def forward(self, x: Tensor, style: Tensor, lengths: Tensor) -> Tensor:
        mask = frame_mask(lengths, x.shape[-1])
        y = F.leaky_relu(self.norm1(x, style, mask, lengths), 0.2)
        if self.pool is not None:
            lengths = 2 * lengths
            mask = frame_mask(lengths, 2 * x.shape[-1])
            y = self.pool(y) * mask
            x = x.repeat_interleave(2, -1)
        y = self.conv1(y) * mask
        y = self.conv2(F.leaky_relu(self.norm2(y, style, mask, lengths), 0.2))
        x = x if self.conv1x1 is None else self.conv1x1(x)
        return (y + x) * mask * math.sqrt(0.5)


class SnakeBlock(nn.Module):
    """The vocoder's residual block: dilated convolutions behind `AdaIn` and snake activations."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        pads = [(kernel - 1) * dilation // 2 for dilation in (1, 3, 5)]
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=p) for d, p in zip((1, 3, 5), pads, strict=True)
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=pads[0]) for _ in range(3))
        self.adain1 = nn.ModuleList(AdaIn(channels) for _ in range(3))
        self.adain2 = nn.ModuleList(AdaIn(channels) for _ in range(3))
        self.alpha1 = nn.ParameterList(torch.ones(1, channels, 1) for _ in range(3))
        self.alpha2 = nn.ParameterList(torch.ones(1, channels, 1) for _ in range(3))

    def forward(self, x: Tensor, style: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
        for i in range(3):
            y = snake(self.adain1[i](x, style, mask, lengths), self.alpha1[i])
            y = self.convs1[i](y).mul_(mask)
            y = snake(self.adain2[i](y, style, mask, lengths), self.alpha2[i])
            x = self.convs2[i](y).mul_(mask).add_(x)
        return x


def snake(x: Tensor, alpha: Tensor) -> Tensor:
    """x + sin²(alpha x) / alpha, in place."""
    wave = (x * alpha).sin_()
    return x.addcmul_(wave, wave / alpha)


class Albert(nn.Module):
    """The phoneme language model: one transformer layer, gone through 12 times."""

    def __init__(self, symbols: int = 178, narrow: int = 128, wide: int = 768, heads: int = 12, inner: int = 2048):
        super().__init__()
        self.heads = heads
        self.word_embeddings = nn.Embedding(symbols, narrow)
        self.position_embeddings = nn.Embedding(512, narrow)
        self.token_type_embeddings = nn.Embedding(2, narrow)
        self.norm = nn.LayerNorm(narrow, eps=1e-12)
        self.project = nn.Linear(narrow, wide)
        self.query, self.key, self.value, self.dense = (nn.Linear(wide, wide) for _ in range(4))
        self.attention_norm, self.full_norm = nn.LayerNorm(wide, eps=1e-12), nn.LayerNorm(wide, eps=1e-12)
        self.ffn, self.ffn_output = nn.Linear(wide, inner), nn.Linear(inner, wide)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.word_embeddings(tokens) + self.position_embeddings(positions) + self.token_type_embeddings.weight[0]
        x = self.project(self.norm(x))
        for _ in range(12):
            q, k, v = (
                layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
            )
            heard = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = self.attention_norm(x + self.dense(heard))
            x = self.full_norm(x + self.ffn_output(F.gelu(self.ffn(x), approximate="tanh")))
        return x


class TextEncoder(nn.Module):
    """Phonemes to what the decoder says: (batch, phonemes) to (batch, phonemes, 512)."""

    def __init__(self, symbols: int = 178, channels: int = 512):
        super().__init__()
        self.embedding = nn.Embedding(symbols, channels)
        self.convs = nn.ModuleList(nn.Conv1d(channels, channels, 5, padding=2) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.lstm = nn.LSTM(channels, channels // 2, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x.transpose(1, 2)).transpose(1, 2)), 0.2)
        return self.lstm(x)[0]


class Prosody(nn.Module):
    """Durations, pitch and energy from the language model's states and the prosody half of the style."""

    def __init__(self, channels: int = 512):
        super().__init__()
        self.lstms = nn.ModuleList(self._lstm(channels) for _ in range(3))
        self.fcs = nn.ModuleList(nn.Linear(STYLE, 2 * channels) for _ in range(3))
        self.lstm, self.shared = self._lstm(channels), self._lstm(channels)
        self.duration = nn.Linear(channels, 50)
        self.F0, self.N = (
            nn.ModuleList([AdaInBlock(512, 512), AdaInBlock(512, 256, upsample=True), AdaInBlock(256, 256)])
            for _ in range(2)
        )
        self.F0_proj, self.N_proj = nn.Conv1d(256, 1, 1), nn.Conv1d(256, 1, 1)

    @staticmethod
    def _lstm(channels: int) -> nn.LSTM:
        return nn.LSTM(channels + STYLE, channels // 2, batch_first=True, bidirectional=True)

    def encode(self, x: Tensor, style: Tensor) -> Tensor:
        """(batch, phonemes, 512) to (batch, phonemes, 640), the style appended."""
        side = style[:, None].expand(-1, x.shape[1], -1)
        x = torch.cat([x, side], -1)
        for lstm, fc in zip(self.lstms, self.fcs, strict=True):
            gamma, beta = fc(style)[:, None].chunk(2, -1)
            x = F.layer_norm(lstm(x)[0], (512,)) * (1 + gamma) + beta
            x = torch.cat([x, side], -1)
        return x

    def durations(self, x: Tensor, speed: Tensor) -> Tensor:
        """Frames of each phoneme, at least one: (batch, phonemes) int64. `speed` is (batch,)."""
        spent = self.duration(self.lstm(x)[0]).sigmoid().sum(-1) / speed[:, None]
        return spent.round().clamp(min=1).long()

    def curves(self, x: Tensor, style: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """F0 in Hz and energy, each (batch, 1, 2 frames), from (batch, frames, 640)."""
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        x = nn.utils.rnn.pad_packed_sequence(self.shared(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        x = x.transpose(1, 2)
        curves = []
        for blocks, project in ((self.F0, self.F0_proj), (self.N, self.N_proj)):
            y, now = x, lengths
            for block in blocks:
                y = block(y, style, now)
                now = lengths * (y.shape[-1] // x.shape[-1])
            curves.append(project(y) * frame_mask(now, y.shape[-1]))
        return curves[0], curves[1]


class Decoder(nn.Module):
    """What is said, F0 and energy to the vocoder's features: (batch, 512, 2 frames)."""

    def __init__(self) -> None:
        super().__init__()
        self.F0_conv, self.N_conv = (nn.Conv1d(1, 1, 3, stride=2, padding=1) for _ in range(2))
        self.asr_res = nn.Conv1d(512, 64, 1)
        self.encode = AdaInBlock(514, 1024)
        self.decode = nn.ModuleList([*(AdaInBlock(1090, 1024) for _ in range(3)), AdaInBlock(1090, 512, upsample=True)])

    def forward(self, said: Tensor, f0: Tensor, energy: Tensor, style: Tensor, lengths: Tensor) -> Tensor:
        mask = frame_mask(lengths, said.shape[-1])
        f0, energy = self.F0_conv(f0) * mask, self.N_conv(energy) * mask
        x = self.encode(torch.cat([said, f0, energy], 1), style, lengths)
        side = torch.cat([self.asr_res(said) * mask, f0, energy], 1)
        for block in self.decode:
            x = block(torch.cat([x, side], 1), style, lengths)
        return x


class Generator(nn.Module):
    """The vocoder: features and F0 to audio through a short inverse Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Linear(HARMONICS, 1)
        self.ups = nn.ModuleList(
            [nn.ConvTranspose1d(512, 256, 20, stride=10, padding=5), nn.ConvTranspose1d(256, 128, 12, 6, padding=3)]
        )
        self.noise_convs = nn.ModuleList([nn.Conv1d(22, 256, 12, stride=6, padding=3), nn.Conv1d(22, 128, 1)])
        self.noise_res = nn.ModuleList([SnakeBlock(256, 7), SnakeBlock(128, 11)])
        self.resblocks = nn.ModuleList(SnakeBlock(channels, kernel) for channels in (256, 128) for kernel in (3, 7, 11))
        self.conv_post = nn.Conv1d(128, FFT + 2, 7, padding=3)
        self.register_buffer("window", torch.hann_window(FFT), persistent=False)

    def excitation(self, f0: Tensor, lengths: Tensor, noise: Tensor | None) -> Tensor:
        """Spectrum of the sine source, magnitude and phase: (batch, 22, frames) from F0 (batch, 1, 2 frames)."""
        # The phase runs to thousands of turns: it is summed in double precision and wrapped before it is rounded.
        turns = (f0.double() / RATE).cumsum(-1) * (SAMPLES_PER_FRAME / 2)
        turns = F.interpolate(turns, scale_factor=SAMPLES_PER_FRAME / 2, mode="linear")
        turns = (turns - turns.floor()).float()
        voiced = (f0 > VOICED_HZ).float().repeat_interleave(SAMPLES_PER_FRAME // 2, -1)
        order = torch.arange(1, HARMONICS + 1, device=f0.device, dtype=torch.float32)[:, None]
        sines = torch.sin(2 * math.pi * turns * order) * (0.1 * voiced)
        if noise is None:
            noise = torch.randn_like(sines)
        sines = sines + noise * (voiced * 0.003 + (1 - voiced) * (0.1 / 3))
        wave = torch.tanh(self.source(sines.transpose(1, 2))).squeeze(-1)
        # The transform mirrors the source at its end: so must a shorter utterance be mirrored at its own.
        place = torch.arange(wave.shape[1], device=wave.device)
        last = SAMPLES_PER_FRAME * lengths[:, None] - 1
        wave = wave.gather(1, torch.where(place <= last, place, 2 * last - place).clamp(min=0))
        spectrum = torch.stft(wave, FFT, HOP, window=self.window, center=True, pad_mode="reflect", return_complex=True)
        # The lowest and the highest bin are real: without this their phase takes its sign from a rounding error.
        imaginary = spectrum.imag.clone()
        imaginary[:, 0] = 0
        imaginary[:, -1] = 0
        return torch.cat([spectrum.abs(), torch.atan2(imaginary, spectrum.real)], 1)

    def forward(self, x: Tensor, f0: Tensor, style: Tensor, lengths: Tensor, noise: Tensor | None = None) -> Tensor:
        source = self.excitation(f0, lengths, noise)
        lengths = 2 * lengths
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            lengths = lengths * up.stride[0]
            if i:
                x = F.pad(x, (1, 0), mode="reflect")
                lengths = lengths + 1
            mask = frame_mask(lengths, x.shape[-1])
            # The source's frames beyond the utterance would reach into it through the convolution.
            heard = source * frame_mask(lengths * (1 if i else 6) + (0 if i else 1), source.shape[-1])
            side = self.noise_convs[i](heard) * mask
            x = x * mask + self.noise_res[i](side, style, mask, lengths)
            blocks = self.resblocks[3 * i : 3 * i + 3]
            x = sum(block(x, style, mask, lengths) for block in blocks) / 3
        x = self.conv_post(F.leaky_relu(x, 0.01)) * mask
        magnitude, phase = x[:, : FFT // 2 + 1].exp() * mask, torch.sin(x[:, FFT // 2 + 1 :])
        return torch.istft(torch.polar(magnitude, phase), FFT, HOP, window=self.window, center=True)


class Kokoro(nn.Module):
    """The whole teacher; `text` first, then `speak` for utterances of similar length."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = Albert()
        self.bert_encoder = nn.Linear(768, 512)
        self.text_encoder = TextEncoder()
        self.prosody = Prosody()
        self.decoder = Decoder()
        self.generator = Generator()

    def text(self, tokens: Tensor, style: Tensor, speed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Durations and what `speak` needs, of utterances of equal phoneme count.

        Args:
            tokens: (batch, phonemes) int64 with a 0 at both ends.
            style: (batch, 256).
            speed: (batch,); 2 speaks in half the time.

        Returns:
            Frames of each phoneme (batch, phonemes) int64, prosody states (batch, phonemes, 640) and text states
            (batch, phonemes, 512).
        """
        states = self.prosody.encode(self.bert_encoder(self.bert(tokens)), style[:, STYLE:])
        return self.prosody.durations(states, speed), states, self.text_encoder(tokens)

    def speak(
        self, states: Tensor, said: Tensor, style: Tensor, lengths: Tensor, movement: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Audio (batch, 600 frames) float32 at 24,000 Hz, the level as it comes; zero or nearly so in the padding.

        Args:
            states, said: `text`'s two states, each phoneme repeated for its frames: (batch, frames, 640 and 512),
                padding zero.
            style: (batch, 256).
            lengths: frames of each utterance, (batch,) int64.
            movement: see `moved`, (batch,).
            noise: (batch, 9, 600 frames) standard normal; drawn if not given.
        """
        said = said.transpose(1, 2)
        f0, energy = self.prosody.curves(states, style[:, STYLE:], lengths)
        f0 = moved(f0, movement)
        x = self.decoder(said, f0, energy, style[:, :STYLE], lengths)
        return self.generator(x, f0, style[:, :STYLE], lengths, noise)


def moved(f0: Tensor, movement: Tensor) -> Tensor:
    """F0 (batch, 1, frames) in Hz with octaves from each utterance's own mean that are `movement` times as large.

    Args:
        f0: as `Prosody.curves` gives it; frames below `LOWEST_HZ` stay as they are.
        movement: (batch,); 1 changes nothing.
    """
    factor = movement[:, None, None]
    is_pitch = f0 >= LOWEST_HZ
    octaves = f0.clamp(min=LOWEST_HZ).log2()
    # The way to and from a pause is quick and counts little; in semitones a frame.
    slope = 12 * F.pad(octaves.diff(), (1, 0))
    weight = is_pitch / (1 + (2 * slope).square())
    mean = (octaves * weight).sum(-1, keepdim=True) / weight.sum(-1, keepdim=True).clamp(min=1e-9)
    changed = (mean + factor * (octaves - mean)).exp2().clamp(LOWEST_HZ, HIGHEST_HZ)
    return torch.where(is_pitch & (factor != 1), changed, f0)


def expand(states: Tensor, durations: Tensor, frames: int) -> Tensor:
    """Repeats each phoneme's state for its frames: (batch, phonemes, width) to (batch, frames, width), zero after."""
    ends = durations.cumsum(1)
    place = torch.arange(frames, device=states.device).expand(len(states), -1).contiguous()
    index = torch.searchsorted(ends, place, right=True).clamp(max=states.shape[1] - 1)
    spread = states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))
    return spread * (place < ends[:, -1:])[..., None]
