"""Drop-in replacement of ``nn.GRU``."""

import functools
import itertools
import numbers
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ser_fast import _torch_compat, backends
from ser_fast.nn.gru_cell import init_uniform
from ser_fast.nn.inference import infers, lowered, recordable, trains, widened
from ser_fast.nn.packing import Join, Part
from ser_fast.ops import checks, onnx
from ser_fast.ops.gru import gru
from ser_fast.ops.gru_layer import Layer, gru_layer
from ser_fast.ops.lengths import frame_mask


def weight_names(layers: int, bidirectional: bool, bias: bool) -> list[list[str]]:
    """Return the parameters' names of each layer and direction."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if bias else ("weight_ih", "weight_hh")
    suffixes = [f"l{layer}{end}" for layer in range(layers) for end in ("", "_reverse")[: 1 + bidirectional]]
    return [[f"{name}_{suffix}" for name in names] for suffix in suffixes]


@functools.cache
def _cached_weight_names(layers: int, bidirectional: bool, bias: bool) -> tuple[str, ...]:
    return tuple(itertools.chain(*weight_names(layers, bidirectional, bias)))


class GRU(nn.Module):
    r"""Drop-in replacement of ``nn.GRU`` on the fused recurrence, with ``lengths`` and ``reset_after``.

    Equivalent to ``nn.GRU(...)``: same constructor, parameter names, state dict and results. Each layer computes

    - r = σ(W_ir x + b_ir + W_hr h + b_hr)
    - z = σ(W_iz x + b_iz + W_hz h + b_hz)
    - n, in one of two forms:

      - ``reset_after=True``, of torch and cuDNN: n = tanh(W_in x + b_in + r (W_hn h + b_hn))
      - ``reset_after=False``, of Cho et al., "Learning phrase representations using RNN encoder-decoder for
        statistical machine translation" (2014, arXiv:1406.1078), and of both papers behind :class:`ser_fast.CGRU` and
        :class:`ser_fast.BiGRUMHA`: n = tanh(W_in x + b_in + W_hn (r h) + b_hn)

    - h' = z h + (1 − z) n

    Args:
        input_size: I, features of a frame.
        hidden_size: H, features of the state.
        num_layers: stacked layers.
        bias: use biases.
        batch_first: batched inputs and outputs are ``[B, T, ...]`` instead of ``[T, B, ...]``.
        dropout: probability of dropping an output of each layer but the last, in training mode.
        bidirectional: also run each layer from the last frame to the first; D is 2 then, else 1.
        reset_after: form of the candidate n, see above.
        device, dtype: device and dtype of the parameters.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, ...: parameters, named and shaped as in ``nn.GRU``, gates
            in the order r, z, n.

    Shape:
        See :meth:`forward`.

    Raises:
        TypeError: if a size is not an int or a flag not a bool.
        ValueError: if a size is below 1 or ``dropout`` is not in 0..1.

    Warns:
        UserWarning: if ``dropout`` is above 0 and ``num_layers`` is 1: it acts between layers.

    Example:
        >>> import torch
        >>> gru = GRU(401, 128, batch_first=True, bidirectional=True)
        >>> x, lengths = torch.randn(2, 300, 401), torch.tensor([300, 164])
        >>> output, h_n = gru(x, lengths=lengths)
        >>> output.shape, h_n.shape
        (torch.Size([2, 300, 256]), torch.Size([2, 2, 128]))
        >>> bool((output[1, 164:] == 0).all())
        True
    """

    mode = "GRU"
    proj_size = 0
    reset_after = True  # default of an nn.GRU that swap converted

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        checks.sizes("GRU", input_size=input_size, hidden_size=hidden_size, num_layers=num_layers)
        flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional, "reset_after": reset_after}
        for name, flag in flags.items():
            checks.of_type("GRU", name, flag, bool)
        if isinstance(dropout, bool) or not isinstance(dropout, numbers.Number) or not 0 <= dropout <= 1:
            raise ValueError(f"GRU: dropout is {dropout!r}; it must be a probability, in 0..1")
        if dropout > 0 and num_layers == 1:
            warnings.warn(f"GRU: dropout is {dropout}, but it acts between layers and num_layers is 1", stacklevel=2)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.reset_after = reset_after
        directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * directions
            for suffix in self._suffixes(layer):
                shapes = {"weight_ih": (3 * hidden_size, width), "weight_hh": (3 * hidden_size, hidden_size)}
                if bias:
                    shapes |= {"bias_ih": (3 * hidden_size,), "bias_hh": (3 * hidden_size,)}
                for name, shape in shapes.items():
                    weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(f"{name}_{suffix}", weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reinitialise all parameters uniformly from ±1/√H, as ``nn.GRU`` does."""
        init_uniform(self, self.hidden_size)

    def flatten_parameters(self) -> None:
        """Make the weights one block of memory for cuDNN, as ``nn.GRU`` does; does nothing off CUDA."""
        weights = {name: getattr(self, name) for names in self._weight_names() for name in names}
        # A parametrized weight is recomputed at every access, so its memory cannot be laid out.
        if all(isinstance(weight, nn.Parameter) and weight.is_cuda for weight in weights.values()):
            options = {"bias": self.bias, "batch_first": self.batch_first, "bidirectional": self.bidirectional}
            twin = nn.GRU(self.input_size, self.hidden_size, self.num_layers, **options, device="meta")
            for name, weight in weights.items():
                setattr(twin, name, weight)
            twin.flatten_parameters()

    def _apply(self, *args, **kwargs):
        module = super()._apply(*args, **kwargs)
        self.flatten_parameters()
        return module

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """Parameters of each layer and direction, as in ``nn.GRU``."""
        return [[getattr(self, name) for name in names] for names in self._weight_names()]

    def _weight_names(self) -> list[list[str]]:
        return weight_names(self.num_layers, self.bidirectional, self.bias)

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        defaults = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        for name, default in (defaults | {"reset_after": True}).items():
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)}")
        return ", ".join(parts)

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None, *, lengths: Tensor | None = None):
        """Run the layers.

        Args:
            input: frames, padded, unbatched, or a ``PackedSequence``. With lengths also the valid frames alone, row
                after row.
            hx: states before the first frame; zeros if None.
            lengths: frames of each row, int64 or int32, on the input's device; all frames if None. Gives the results
                of a packed sequence on a padded batch.

        Shape:
            input ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, unbatched ``[T, I]``, or with lengths of sum N
            ``[N, I]``; hx ``[layers * D, B, H]`` (``[layers * D, H]`` unbatched); lengths ``[B]``.

        Returns:
            ``(output, h_n)``: output like the input with ``D * H`` features, 0 past each length, and h_n like hx,
            each row's state at its own last frame.

        Raises:
            RuntimeError: if an argument has an invalid shape, device or value, before anything is computed.
            ValueError: if the input is neither 2-D nor 3-D, or the dtype of input or hx differs from that of the
                weights outside autocast.
        """
        if lengths is None and self._is_usual(input, hx) and (weights := self._inferring(input, hx)):
            return self._infer(input, hx, None, weights)
        input, hx, lengths = recordable(input, hx, lengths)
        if isinstance(input, PackedSequence):
            checks.require(lengths is None, "GRU", "lengths is given with a PackedSequence", "None")
            checks.operands("GRU", self._like, input=input.data, hx=hx)
            shape = list(input.data.shape)
            checks.require(len(shape) == 2, "GRU", f"the PackedSequence's data has shape {shape}", "[N, I]")
            return self._forward_packed(input, hx)
        checks.operands("GRU", self._like, input=input, hx=hx)
        checks.tensors("GRU", lengths=lengths)
        if input.dim() not in (2, 3):
            raise ValueError(f"GRU: Expected input to be 2D or 3D, got {input.dim()}D instead")
        if input.dim() == 2 and lengths is not None:
            return self._run_packed(input, hx, lengths)
        if input.dim() == 2:
            checks.require(hx is None or hx.dim() == 2, "GRU", f"hx has {hx is not None and hx.dim()} dimensions",
                           "[layers * D, H], since the input is unbatched")  # fmt: skip
            batch_axis = 0 if self.batch_first else 1
            output, h_n = self._run(input.unsqueeze(batch_axis), None if hx is None else hx.unsqueeze(1), None)
            return output.squeeze(batch_axis), h_n.squeeze(1)
        return self._run(input, hx, lengths)

    @property
    def _like(self) -> Tensor:
        """A tensor of the device and dtype of inputs."""
        return self.weight_ih_l0

    def _is_usual(self, x, hx) -> bool:
        """Return whether the shapes are right at first sight: a full check takes as long as a small call."""
        if type(x) is not Tensor or x.dim() != 3 or x.shape[2] != self.input_size:
            return False
        if hx is None:
            return True
        layers = self.num_layers * (2 if self.bidirectional else 1)
        return type(hx) is Tensor and hx.shape == (layers, x.shape[0 if self.batch_first else 1], self.hidden_size)

    def _held_weights(self) -> list[Tensor]:
        """Return the weights of all layers and directions, one after the other."""
        held, names = self._parameters, _cached_weight_names(self.num_layers, self.bidirectional, self.bias)
        # A parametrized or pruned weight is no parameter but recomputed at every access.
        return list(held.values()) if tuple(held) == names else [getattr(self, name) for name in names]

    def _inferring(self, x: Tensor, hx: Tensor | None) -> list[Tensor] | None:
        """Return the weights for :meth:`_infer` if it runs this call."""
        return infers(x, hx, self._held_weights, True)

    def _infer(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None, weights: list) -> tuple[Tensor, Tensor]:
        """Run all layers without a gradient on a padded batch or on packed frames."""
        x, hx, weights = lowered(x, hx, weights)
        if self.num_layers == 1:
            return self._infer_layer(x, weights, hx, lengths)
        return self._each_layer(x, hx, weights, lambda x, layer, h0: self._infer_layer(x, layer, h0, lengths))

    def _train(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None, weights: list) -> tuple[Tensor, Tensor]:
        """Run all layers with a gradient on a padded batch or on packed frames."""
        lowers = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        x, hx, weights = widened(x, hx, weights)
        options = self.bias, self.reset_after, self.batch_first
        total = x.shape[0] if x.dim() == 2 else x.shape[0] * x.shape[1] if lengths is None else int(lengths.sum())

        def run(x, layer, h0):
            return Layer.apply(x, h0, lengths, total, *options, *layer)

        y, h_n = self._each_layer(x, hx, weights, run)
        return (y.bfloat16(), h_n.bfloat16()) if lowers else (y, h_n)

    def _each_layer(self, x: Tensor, hx: Tensor | None, weights: list, run) -> tuple[Tensor, Tensor]:
        """Run all layers by ``run(x, weights, h0)``."""
        each, directions, states = len(weights) // self.num_layers, 2 if self.bidirectional else 1, []
        for layer in range(self.num_layers):
            h0 = None if hx is None else hx[layer * directions : (layer + 1) * directions]
            x, h_n = run(x, weights[layer * each : (layer + 1) * each], h0)
            states.append(h_n)
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        return x, states[0] if len(states) == 1 else torch.cat(states)

    def _infer_layer(self, x: Tensor, weights: list, h0: Tensor | None, lengths: Tensor | None):
        return gru_layer(x, weights, h0, lengths, self.bias, self.reset_after, self.batch_first)

    def _suffixes(self, layer: int) -> list[str]:
        return [f"l{layer}", f"l{layer}_reverse"] if self.bidirectional else [f"l{layer}"]

    def _forward_packed(self, packed: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        if checks.tracing():
            return self._trace_packed(packed, hx)
        # Rows stay in the packed order, longest first, so only the states are permuted.
        padded, lengths = pad_packed_sequence(PackedSequence(packed.data, packed.batch_sizes), self.batch_first)
        if hx is not None:
            self._check_states(hx, padded.shape[0 if self.batch_first else 1])
        if hx is not None and packed.sorted_indices is not None:
            hx = hx.index_select(1, packed.sorted_indices)
        output, h_n = self._run(padded, hx, lengths.to(padded.device))
        data = pack_padded_sequence(output, lengths, self.batch_first).data
        if packed.unsorted_indices is not None:
            h_n = h_n.index_select(1, packed.unsorted_indices)
        return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), h_n

    def _trace_packed(self, packed: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        """Run a packed sequence by indices whose shapes follow from the arguments, which a graph can hold."""
        data, order = packed.data, packed.sorted_indices
        sizes = packed.batch_sizes.to(data.device)
        if order is not None:
            batch, hx = order.shape[0], None if hx is None else hx.index_select(1, order)
        elif hx is not None:
            batch = hx.shape[1]
        else:
            batch = packed.batch_sizes[0].item()
            torch._check(batch > 0)
        starts = sizes.cumsum(0) - sizes
        rows = torch.arange(batch, device=data.device)
        valid = frame_mask(sizes, batch)  # [T, B]: the frames' sizes are lengths over the rows
        x = data[torch.where(valid, starts[:, None] + rows, 0)].masked_fill(~valid[..., None], 0)
        turned = x.transpose(0, 1) if self.batch_first else x
        output, h_n = self._run(turned, hx, valid.sum(0))
        frames = torch.arange(data.shape[0], device=data.device)
        times = torch.zeros_like(frames).index_put((starts[1:],), torch.ones_like(starts[1:])).cumsum(0)
        output = output.transpose(0, 1) if self.batch_first else output
        if packed.unsorted_indices is not None:
            h_n = h_n.index_select(1, packed.unsorted_indices)
        y = output[times, frames - starts[times]]
        return PackedSequence(y, packed.batch_sizes, order, packed.unsorted_indices), h_n

    def _run(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Check the arguments of a batch and run it on the selected path."""
        self._check(x, hx, lengths)
        if weights := self._inferring(x, hx):
            return self._infer(x, hx, lengths, weights)
        path, lengths = self._path(x, lengths)
        if path != "torch" and (weights := trains(x, hx, self._held_weights)):
            return self._train(x, hx, lengths, weights)
        if path == "packed":
            return self._packed(x, hx, lengths)
        if lengths is not None and (torch.is_grad_enabled() or torch.jit.is_tracing()):
            # The products behind the input weights' gradient include the padding, where 0 * NaN is NaN.
            valid = frame_mask(lengths, x.shape[1 if self.batch_first else 0])
            x = x.masked_fill(~(valid if self.batch_first else valid.T)[..., None], 0)
        return self._torch_layers(x, hx, lengths) if path == "torch" else self._layers(x, hx, lengths)

    def _run_packed(self, x: Tensor, hx: Tensor | None, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Run the valid frames ``[N, I]`` of all rows; reads the lengths."""
        checks.require(lengths.dim() == 1, "GRU", f"lengths has shape {list(lengths.shape)}", "[B]")
        sizes = lengths.tolist()
        good = sizes and min(sizes) >= 0 and sum(sizes) == len(x)
        checks.require(good, "GRU", f"lengths are {sizes}", f"at least 0 and add up to the packed frames, {len(x)}")
        if len(x) and x.shape[1] == self.input_size and (weights := self._inferring(x, hx)):
            if hx is not None:
                self._check_states(hx, len(sizes))
            return self._infer(x, hx, lengths, weights)
        if checks.transforming() or not (len(x) and self._takes_packed(x, lengths)):
            y, h_n = self._run(Part.apply(x, sizes, max(sizes), self.batch_first), hx, lengths)
            return Join.apply(y if self.batch_first else y.transpose(0, 1), sizes, self.batch_first), h_n
        self._check(x[None] if self.batch_first else x[:, None], None, None)
        if hx is not None:
            self._check_states(hx, len(sizes))
        if weights := trains(x, hx, self._held_weights):
            return self._train(x, hx, lengths, weights)
        return self._layers(x, hx, lengths)

    def _path(self, x: Tensor, lengths: Tensor | None) -> tuple[str, Tensor | None]:
        """Return the path of a batch and the lengths it needs, None if every frame is valid.

        "torch" is ``nn.GRU``'s own, "op" our recurrence over the padded batch, "packed" the same over valid frames.
        """
        if x.shape[0 if self.batch_first else 1] == 0:
            return "torch", None  # nothing to compute, and torch returns the right shapes
        if checks.transforming():
            return "op", lengths
        if self._takes_packed(x, lengths):
            total = int(lengths.sum())
            if 0 < total < x.shape[0] * x.shape[1]:
                return "packed", lengths
            lengths = lengths if total == 0 else None
        # Tracing fails in torch's packing and in its loop over steps off CUDA, and ONNX has no cuDNN.
        untraceable = torch.compiler.is_compiling() and (lengths is not None or not x.is_cuda or onnx.exporting())
        if self.reset_after and self._backend(x) == "torch" and not untraceable:
            return "torch", lengths
        return "op", lengths

    def _backend(self, x: Tensor) -> str:
        kind = x.device.type
        autocast = kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else x.dtype
        # A single step takes torch's path, except in a traced graph and under autocast.
        steps = None if autocast or torch.compiler.is_compiling() else x.shape[1 if self.batch_first else 0]
        return backends.select("gru", x.device, steps, dtype=dtype, hidden_size=self.hidden_size)

    def _takes_packed(self, x: Tensor, lengths: Tensor | None) -> bool:
        """Return whether padding can be skipped: lengths are readable and the kernel takes packed rows."""
        return lengths is not None and checks.readable(lengths) and backends.select("gru", x.device) == "compiled"

    def _packed(self, x: Tensor, hx: Tensor | None, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Run the layers on the valid frames alone, row after row."""
        rows, sizes = x if self.batch_first else x.transpose(0, 1), lengths.tolist()
        y, h_n = self._layers(Join.apply(rows, sizes, self.batch_first), hx, lengths)
        return Part.apply(y, sizes, rows.shape[1], self.batch_first), h_n

    def _layers(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run all layers on ``[T, B, I]``, ``[B, T, I]`` with ``batch_first``, or packed ``[N, I]``."""
        directions = 2 if self.bidirectional else 1
        turned = self.batch_first and x.dim() == 3
        states = []
        for layer in range(self.num_layers):
            h0 = None if hx is None else hx[layer * directions : (layer + 1) * directions]
            y, h_n = self._layer(layer, x, h0, lengths, turned)
            x = (y.transpose(0, 1) if turned else y).flatten(-2)
            states.append(h_n)
            if self.dropout and layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        if x.requires_grad and x.dim() == 3 and x.device.type == "cpu" and not checks.tracing():
            x = x.clone()  # the op's backward reads its output, which callers of nn.GRU may overwrite on a CPU
        return x, states[0] if len(states) == 1 else torch.cat(states)

    def _layer(self, layer: int, x: Tensor, h0, lengths, turned: bool) -> tuple[Tensor, Tensor]:
        """Return y ``[T, B, D, H]`` (packed ``[N, D, H]``) and h_n ``[D, B, H]`` of one layer."""
        w_ih, w_hh, b_ih, b_hh = (
            self._of_directions(name, layer) if self.bias or name.startswith("weight") else None
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        if onnx.exporting():
            return onnx.gru(x.transpose(0, 1) if turned else x, w_ih, w_hh, b_ih, b_hh, h0, lengths, self.reset_after)
        if self.bias and not self.reset_after:
            # Both are added to the same sums: one bias saves a pass over gx. Times 1, or the gradients share memory.
            b_ih, b_hh = None, 1 * b_ih + b_hh
        gx = F.linear(x, w_ih.flatten(0, 1), None if b_ih is None else b_ih.flatten())
        gx = gx.unflatten(-1, (len(w_hh), 3 * self.hidden_size))
        return gru(gx.transpose(0, 1) if turned else gx, w_hh, b_hh, h0, lengths, reset_after=self.reset_after)

    def _of_directions(self, name: str, layer: int) -> Tensor:
        """Return a layer's weights [D, ...]. Views, unlike torch.stack, raise an error if a storage was freed."""
        parts = [getattr(self, f"{name}_{suffix}")[None] for suffix in self._suffixes(layer)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _check(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None) -> None:
        sizes = tuple(x.shape)
        frames, batch = (sizes[1], sizes[0]) if self.batch_first else sizes[:2]
        checks.require(sizes[2] == self.input_size, "GRU", f"input has {sizes[2]} features", f"{self.input_size}")
        checks.require(frames > 0, "GRU", f"input has shape {list(sizes)}", "of at least one frame")
        if hx is not None:
            self._check_states(hx, batch)
        checks.lengths("GRU", lengths, x, batch, frames)

    def _check_states(self, hx: Tensor, batch: int) -> None:
        layers = self.num_layers * (2 if self.bidirectional else 1)
        checks.shape("GRU", "hx", hx, (layers, batch, self.hidden_size), "[layers * D, B, H]")

    def _torch_layers(self, x: Tensor, hx: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run torch's own GRU on these weights. With lengths it packs, which reads them on the host."""
        directions = 2 if self.bidirectional else 1
        batch = x.shape[0] if self.batch_first else x.shape[1]
        if hx is None:
            hx = x.new_zeros(self.num_layers * directions, batch, self.hidden_size)
        weights = [weight for group in self.all_weights for weight in group]
        options = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
        if lengths is None:
            return _torch_compat.gru(x, hx, weights, *options, self.batch_first)
        host = lengths.cpu().clamp(0, x.shape[1 if self.batch_first else 0])
        # Packing refuses empty rows: they run one frame, whose output and state are restored afterwards.
        packed = pack_padded_sequence(x, host.clamp(min=1), self.batch_first, enforce_sorted=False)
        data, h_n = _torch_compat.gru(
            packed.data, packed.batch_sizes, hx.index_select(1, packed.sorted_indices), weights, *options
        )
        output, _ = pad_packed_sequence(
            packed._replace(data=data), self.batch_first, total_length=x.shape[1 if self.batch_first else 0]
        )
        empty = lengths <= 0
        h_n = torch.where(empty[:, None], hx, h_n.index_select(1, packed.unsorted_indices))
        return output.masked_fill(empty[:, None, None] if self.batch_first else empty[:, None], 0), h_n
