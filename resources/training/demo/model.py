"""The decoder (Llama's architecture, with its names) and the mixture of adapters on its linears."""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    intermediate: int = 768
    context: int = 1024
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads

    def asdict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class AdapterShape:
    name: str
    rank: int
    alpha: int


class Linear(nn.Module):
    """y = W x + sum_i s_i * (alpha_i / r_i) * B_i A_i x, the A_i of all adapters stacked in one matrix, the B_i in
    another."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.index = -1  # among the adapted linears
        self.lora_A: nn.Parameter | None = None
        self.lora_B: nn.Parameter | None = None

    def forward(self, x: Tensor, scalings: Tensor | None) -> Tensor:
        y = F.linear(x, self.weight)
        if scalings is None:
            return y
        # [batch, tokens, layers or 1, ranks of all adapters]
        s = scalings[:, :, 0 if scalings.shape[2] == 1 else self.index]
        return y + F.linear(F.linear(x, self.lora_A) * s.to(y.dtype), self.lora_B)


class Norm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        f = x.float()
        return (f * torch.rsqrt(f.square().mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        kv = shape.kv_heads * shape.head_size
        self.shape = shape
        self.q_proj = Linear(shape.hidden, shape.hidden)
        self.k_proj = Linear(shape.hidden, kv)
        self.v_proj = Linear(shape.hidden, kv)
        self.o_proj = Linear(shape.hidden, shape.hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, scalings: Tensor | None) -> Tensor:
        batch, tokens, _ = x.shape
        size, groups = self.shape.head_size, self.shape.heads // self.shape.kv_heads
        q = self.q_proj(x, scalings).view(batch, tokens, -1, size).transpose(1, 2)
        k = self.k_proj(x, scalings).view(batch, tokens, -1, size).transpose(1, 2)
        v = self.v_proj(x, scalings).view(batch, tokens, -1, size).transpose(1, 2)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1), scalings)


class Mlp(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.gate_proj = Linear(shape.hidden, shape.intermediate)
        self.up_proj = Linear(shape.hidden, shape.intermediate)
        self.down_proj = Linear(shape.intermediate, shape.hidden)

    def forward(self, x: Tensor, scalings: Tensor | None) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x, scalings)) * self.up_proj(x, scalings), scalings)


class Layer(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = Mlp(shape)
        self.input_layernorm = Norm(shape.hidden, shape.norm_eps)
        self.post_attention_layernorm = Norm(shape.hidden, shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, scalings: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, scalings)
        return x + self.mlp(self.post_attention_layernorm(x), scalings)


class Decoder(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.adapters: tuple[AdapterShape, ...] = ()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden, shape.norm_eps)
        for i, linear in enumerate(self.linears().values()):
            linear.index = i
        frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_size, 2).float() / shape.head_size)
        angles = torch.outer(torch.arange(shape.context).float(), frequencies).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def initialize(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * self.shape.layers) ** 0.5 if residual else 0.02)

    def linears(self) -> dict[str, Linear]:
        """Path -> linear, in the order in which transformers registers them: the layer axis of the scalings."""
        return {f"model.{name}": module for name, module in self.named_modules() if isinstance(module, Linear)}

    def add_adapters(self, adapters: tuple[AdapterShape, ...]) -> None:
        """Empty adapters on every linear; only they are trained from now on."""
        self.adapters = adapters
        ranks = sum(a.rank for a in adapters)
        device = self.embed_tokens.weight.device
        self.requires_grad_(False)
        for linear in self.linears().values():
            outputs, inputs = linear.weight.shape
            linear.lora_A = nn.Parameter(torch.empty(ranks, inputs, device=device).uniform_(-1, 1) / inputs**0.5)
            linear.lora_B = nn.Parameter(torch.zeros(outputs, ranks, device=device))
        owner = torch.cat([torch.full((a.rank,), i) for i, a in enumerate(adapters)])
        scale = torch.cat([torch.full((a.rank,), a.alpha / a.rank) for a in adapters])
        self.register_buffer("rank_owner", owner.to(device), persistent=False)
        self.register_buffer("rank_scale", scale.to(device), persistent=False)

    def hidden_states(self, ids: Tensor, scalings: Tensor | None = None) -> Tensor:
        """After the final norm. `scalings`: [batch, tokens, layers or 1, adapters], or none for the base alone."""
        if scalings is not None:
            scalings = scalings[..., self.rank_owner] * self.rank_scale
        x = self.embed_tokens(ids)
        tokens = ids.shape[1]
        cos, sin = self.cos[:tokens], self.sin[:tokens]
        for layer in self.layers:
            x = layer(x, cos, sin, scalings)
        return self.norm(x)

    def forward(self, ids: Tensor, scalings: Tensor | None = None) -> Tensor:
        return F.linear(self.hidden_states(ids, scalings), self.embed_tokens.weight)


class Classifier(nn.Module):
    """X-LoRA's: the base's last hidden state to the scalings [batch, tokens, layers, adapters]."""

    def __init__(self, hidden: int, layers: int, adapters: int, size: int, dropout: float, temperature: float):
        super().__init__()
        self.layers, self.adapters, self.temperature = layers, adapters, temperature
        self.inner = nn.ModuleList([nn.Linear(hidden, size), nn.ReLU(), nn.Dropout(dropout)])
        self.last = nn.Linear(size, layers * adapters)

    def forward(self, hidden: Tensor) -> Tensor:
        for module in self.inner:
            hidden = module(hidden)
        logits = self.last(hidden).unflatten(-1, (self.layers, self.adapters))
        return torch.softmax(logits.float() / self.temperature, dim=-1)
