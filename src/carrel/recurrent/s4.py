"""S4: a state space that keeps HiPPO's matrix whole, as diagonal minus rank one."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from carrel.layers import fft_conv
from carrel.layers.mixer import Mixer
from carrel.ops import dplr_kernel

from .diagonal import as_complex, check_sizes, initial_log_dt, rates_of
from .hippo_matrices import legs_normal_part

_CHUNK = 64  # tokens: blocks of the last state, and the shortest piece that is not stepped through


class S4State(NamedTuple):
    """x: (batch, dim, state_dim / 2), complex64, or complex128 for a float64 layer."""

    x: Tensor


class S4(Mixer):
    r"""A HiPPO memory per channel, trained as a long convolution and run as a recurrence.

    .. math:: x' = (\Lambda - p p^H)\, x + b\, u, \qquad y = 2\,\mathrm{Re} \sum_n C_n x_n + D u, \qquad
              \Lambda_n = -e^{\rho_n} + i \omega_n

    discretised by the bilinear rule with the channel's step Δ. It starts as LegS, the memory of the whole past, in the
    basis in which that is diagonal minus rank one. Whole sequences are convolved with :func:`carrel.ops.dplr_kernel`,
    single tokens take the recurrence, O(N) each.

    What is trained is not C but :math:`\tilde C = C (I - \bar A^L)`, from which the kernel of L = ``length`` steps
    comes without a matrix power. The recurrence needs C itself: it is solved for when a piece is stepped through, and
    kept while the parameters stay as they are. Sequences of any length may be fed; longer ones go in pieces of
    ``length``.

    Args:
        dim: channels, each with a system of its own.
        state_dim: N, even; N / 2 complex modes are kept, their conjugates are implied.
        length: L, the tokens that one kernel covers: the length of the training sequences.
        dt_min, dt_max: range that steps are drawn from, log-uniformly.
    x, y: (batch, length, dim).   state: S4State(x: (batch, dim, state_dim / 2)), complex, constant size.
    Raises ValueError: an odd state_dim, length < 1, dt_min >= dt_max; x or the state of a wrong shape or type.
    Cost: the kernel O(dim state_dim L) once for the batch, and as much again for every row that continues a state; the
    convolution O(batch dim length log length); the last state O(batch dim state_dim length + dim state_dim^3).
    Train ρ, ω, p, b and Δ without weight decay and with a learning rate of at most 1e-3.   Source: arXiv:2111.00396.
    """

    no_weight_decay: ClassVar[frozenset[str]] = frozenset({"log_dt", "A_log", "A_imag", "P", "B"})

    def __init__(
        self, dim: int, state_dim: int = 64, length: int = 1024, dt_min: float = 1e-3, dt_max: float = 1e-1
    ) -> None:
        super().__init__()
        check_sizes("S4", dim, state_dim, dt_min, dt_max)
        if length < 1:
            raise ValueError(f"S4 wants length of at least 1, not {length}")
        self.dim, self.state_dim, self.length = dim, state_dim, length
        self.dt_min, self.dt_max = dt_min, dt_max
        self.chunk = max(_CHUNK, length) if length < 4 * _CHUNK else _CHUNK
        modes = state_dim // 2
        self.log_dt = nn.Parameter(torch.empty(dim))
        self.A_log = nn.Parameter(torch.empty(dim, modes))
        self.A_imag = nn.Parameter(torch.empty(dim, modes))
        self.P = nn.Parameter(torch.empty(dim, modes, 2))
        self.B = nn.Parameter(torch.empty(dim, modes, 2))
        self.C = nn.Parameter(torch.empty(dim, modes, 2))  # the truncated one
        self.D = nn.Parameter(torch.empty(dim))
        self._solved: tuple[list[tuple[Tensor, int, int]], Tensor] | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw every parameter anew from torch's global generator; C is complex normal, and truncated to ``length``."""
        start = legs_normal_part(self.state_dim)
        self.log_dt.copy_(initial_log_dt(self.dim, self.dt_min, self.dt_max))
        self.A_log.copy_(torch.log(-start.rates.real).expand_as(self.A_log))
        self.A_imag.copy_(start.rates.imag.expand_as(self.A_imag))
        self.P.copy_(torch.view_as_real(start.low_rank).expand_as(self.P))
        self.B.copy_(torch.view_as_real(start.input).expand_as(self.B))
        C = torch.randn(self.dim, self.state_dim, 1, dtype=torch.float64, device=self.C.device) * 2**0.5
        power = torch.linalg.matrix_power(self._system(torch.float64).matrix(), self.length)
        C = C - power.mT @ C
        half = self.state_dim // 2  # a row acts on (Re x, Im x) as (2 Re C, -2 Im C)
        self.C.copy_(torch.stack([C[:, :half, 0], -C[:, half:, 0]], -1) / 2)
        nn.init.normal_(self.D)

    def rates(self) -> Tensor:
        """Λ: (dim, state_dim / 2), complex, Re Λ < 0."""
        return rates_of(self.A_log, self.A_imag)

    def kernel(self) -> Tensor:
        """The convolution kernel: (dim, length)."""
        return dplr_kernel(
            self.log_dt, self.rates(), as_complex(self.P), as_complex(self.B), as_complex(self.C), self.length
        )

    def forward(self, x: Tensor, state: S4State | None = None) -> tuple[Tensor, S4State]:
        self._check_input(x)
        self._check_state(x, state)
        dtype = as_complex(self.C).dtype
        u = x.transpose(1, 2).to(as_complex(self.C).real.dtype)
        before = None if state is None else state.x.to(dtype)
        outputs = [u[..., :0]]
        for start in range(0, x.shape[1], self.length):
            piece = u[..., start : start + self.length]
            stepped = piece.shape[-1] == 1 or (before is not None and piece.shape[-1] < _CHUNK)
            y, before = (self._step if stepped else self._convolve)(piece, before)
            outputs.append(y)
        if before is None:  # no token and no state
            before = torch.zeros(x.shape[0], self.dim, self.state_dim // 2, dtype=dtype, device=x.device)
        y = torch.cat(outputs, -1)
        return y.transpose(1, 2).to(x.dtype) + self.D * x, S4State(before)

    def _convolve(self, u: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """u: (batch, dim, length) of 2 .. ``length`` tokens."""
        length, carry = u.shape[-1], None
        system = self._system(u.dtype)
        if before is not None:
            C = as_complex(self.C)
            carry = dplr_kernel(self.log_dt, system.rates, system.P, system.as_input(before), C, self.length)
            carry = carry[..., :length]
        y = fft_conv(u, self.kernel()[:, :length], carry)
        return y, system.after(u, before)

    def _step(self, u: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Token by token."""
        system, C, rows = self._system(u.dtype), self._output(), []
        x = before if before is not None else torch.zeros(len(u), *C.shape, dtype=C.dtype, device=u.device)
        for t in range(u.shape[-1]):
            x = system.step(x, u[..., t : t + 1])
            rows.append(2 * (C * x).real.sum(-1))
        return torch.stack(rows, -1), x

    def _output(self) -> Tensor:
        """C = C̃ (I - Ā^L)^-1, (dim, state_dim / 2); kept until a parameter changes, where no gradient is wanted."""
        given = [self.log_dt, self.A_log, self.A_imag, self.P, self.B, self.C]
        keep = not torch.compiler.is_compiling() and not (
            torch.is_grad_enabled() and any(p.requires_grad for p in given)
        )
        if keep and self._solved is not None:
            known = zip(self._solved[0], given, strict=True)
            if all(p is old and p._version == version and p.data_ptr() == place for (old, version, place), p in known):
                return self._solved[1]
        matrix = self._system(torch.float64).matrix()
        eye = torch.eye(self.state_dim, dtype=matrix.dtype, device=matrix.device)
        row = torch.cat([2 * self.C[..., 0], -2 * self.C[..., 1]], -1).to(matrix.dtype).unsqueeze(-1)
        power = torch.linalg.matrix_power(matrix, self.length)
        row = torch.linalg.solve((eye - power).mT, row).squeeze(-1)
        half = self.state_dim // 2
        C = (torch.complex(row[:, :half], -row[:, half:]) / 2).to(as_complex(self.C).dtype)
        if keep:
            self._solved = ([(p, p._version, p.data_ptr()) for p in given], C)
        return C

    def _system(self, dtype: torch.dtype) -> _System:
        wide = torch.complex128 if dtype == torch.float64 else torch.complex64
        parts = (self.rates(), as_complex(self.P), as_complex(self.B))
        return _System(torch.exp(self.log_dt.to(dtype)).unsqueeze(-1), *(x.to(wide) for x in parts))

    def _check_state(self, x: Tensor, state: S4State | None) -> None:
        if x.is_complex():
            raise ValueError(f"S4 wants real x, not {x.dtype}")
        if state is None:
            return
        wanted = (x.shape[0], self.dim, self.state_dim // 2)
        if not isinstance(state, S4State):
            raise ValueError(f"S4 wants an S4State or None as its state, not {type(state).__name__}")
        if tuple(state.x.shape) != wanted or not state.x.is_complex():
            raise ValueError(
                f"S4 wants a complex state of shape {wanted}, not {state.x.dtype} of shape {tuple(state.x.shape)}"
            )

    def extra_repr(self) -> str:
        return f"{self.dim}, state_dim={self.state_dim}, length={self.length}"


class _System(NamedTuple):
    """One step of x' = (Λ - p p^H) x + b u by the bilinear rule; vectors stand for themselves and their conjugates."""

    dt: Tensor  # (dim, 1)
    rates: Tensor  # (dim, modes), as the others
    P: Tensor
    B: Tensor

    def step(self, x: Tensor, u: Tensor | None) -> Tensor:
        """x: (..., dim, modes), u: (..., dim, 1)."""
        d = 1 / (2 / self.dt - self.rates)
        v = (2 / self.dt + self.rates) * x - self.P * self._along(x)
        if u is not None:
            v = v + 2 * self.B * u
        v = d * v
        return v - d * self.P * self._along(v) / (1 + 2 * (self.P.abs().square() * d).real.sum(-1, keepdim=True))

    def as_input(self, x: Tensor) -> Tensor:
        """The input vector whose kernel is what the state x still says: (I + Δ/2 A) x / Δ."""
        return x / self.dt + (self.rates * x - self.P * self._along(x)) / 2

    def _along(self, x: Tensor) -> Tensor:
        """p^H x over all pairs."""
        return 2 * (self.P.conj() * x).real.sum(-1, keepdim=True)

    def matrix(self) -> Tensor:
        """The step as a real matrix on (Re x, Im x): (dim, 2 modes, 2 modes)."""
        modes = self.rates.shape[-1]
        eye = torch.eye(modes, dtype=self.rates.dtype, device=self.rates.device)
        columns = self.step(torch.cat([eye, 1j * eye]).unsqueeze(1), None)  # (2 modes, dim, modes)
        return torch.cat([columns.real, columns.imag], -1).permute(1, 2, 0)

    def after(self, u: Tensor, before: Tensor | None) -> Tensor:
        """The state after u (batch, dim, length), by blocks: O(N) per token and N^2 per block."""
        length = u.shape[-1]
        size = min(_CHUNK, 1 << (length - 1).bit_length())
        modes = self.rates.shape[-1]
        first = (length - 1) % size + 1  # tokens of the first block, the only short one
        start = self.step(torch.zeros_like(self.rates), torch.ones_like(self.dt))
        powers = [self.matrix()]
        inputs = torch.cat([start.real, start.imag], -1).unsqueeze(-1)  # A^j b as columns, doubled each time
        while inputs.shape[-1] < size:
            inputs = torch.cat([inputs, powers[-1] @ inputs], -1)
            powers.append(powers[-1] @ powers[-1])
        blocks = torch.nn.functional.pad(u, (size - first, 0))
        blocks = blocks.reshape(*u.shape[:2], -1, size)
        added = torch.einsum("bdkq,dnq->kdnb", blocks, inputs.flip(-1))
        if before is None:
            x = added[0]
        else:
            x = torch.cat([before.real, before.imag], -1).permute(1, 2, 0)
            for i, power in enumerate(powers):
                if first >> i & 1:
                    x = power @ x
            x = x + added[0]
        for block in added[1:]:
            x = powers[-1] @ x + block
        return torch.complex(x[:, :modes], x[:, modes:]).permute(2, 0, 1)
