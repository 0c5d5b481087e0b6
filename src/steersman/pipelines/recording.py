"""One turn of a pipeline's loop, recorded while the pipeline makes it, so that the network can be asked again.

Between two of its scheduler's steps a pipeline makes of the sample z and the time t what its network is shown, asks it
once or twice, and makes one output u of the answers. With every operation of that turn recorded, it is a function

    u = F(z, t),

with whatever else the network is given (prompts, masks, images, a ControlNet's residuals) as in the turn. Calls of the
pipeline's own modules are one operation each. What a pipeline decides by values of tensors stays as it was decided.

To differentiate the turn that the pipeline made itself, what enters the network is made a leaf, and the network's call
is made with gradients. All other operations are run again, with the network's answers as they were: a gradient g of an
answer goes on from the leaf to the sample as ``(d answer / d leaf)^T g``.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from steersman.batching import each_tensor, tensors
from steersman.errors import InputError
from steersman.pipelines.network import by_name

__all__ = ["Recording", "Turn", "original"]


class _Call(NamedTuple):
    """An operation of the turn.

    Attributes:
        run: The function or module.
        args: Its arguments.
        kwargs: Its named arguments.
        outcome: What it returned; of an operation in place, the tensor that it changed.
        leaves: Of a network that is differentiated, the leaf in place of each tensor that entered, by that one's id.
    """

    run: Callable[..., Any]
    args: tuple
    kwargs: dict[str, Any]
    outcome: Any
    leaves: Mapping[int, Tensor]


class Recording(TorchFunctionMode):
    """The recorded operations of a pipeline's present turn.

    It records while it is entered as a context, except inside `paused` and the modules.

    Attributes:
        given: The arguments that a network was given last, by name.
        idle: Whether nothing is kept, as the trajectory has ended.
    """

    def __init__(self, networks: Sequence[nn.Module], modules: Sequence[nn.Module], due: Callable[[], bool]) -> None:
        super().__init__()
        self.networks, self.modules, self.due = networks, modules, due
        self.entered = self.is_paused = False
        self.depth = 0  # of the modules that are being called
        self.leaves: dict[int, Tensor] = {}
        self.forget()

    def forget(self) -> None:
        """Begins a new turn, of which nothing is known yet."""
        self.calls: list[_Call] = []
        self.given: Mapping[str, Any] = {}
        self.idle = False

    def __enter__(self) -> "Recording":
        self.entered = True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401
        super().__exit__(*error)
        self.entered = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves unrecorded what happens inside."""
        entered, was_paused = self.entered, self.is_paused
        self.is_paused = True
        if entered:
            self.__exit__(None, None, None)
        try:
            yield
        finally:
            self.is_paused = was_paused
            if entered:
                self.__enter__()

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Records an operation."""
        kwargs = kwargs or {}
        outcome = func(*args, **kwargs)
        self.add(func, args, kwargs, args[0] if func is Tensor.__setitem__ else outcome)
        return outcome

    def add(self, run: Callable[..., Any], args: tuple, kwargs: dict[str, Any], outcome: Any) -> None:  # noqa: ANN401
        """Records an operation that returned tensors."""
        if not self.idle and tensors(outcome):
            leaves, self.leaves = self.leaves, {}
            self.calls.append(_Call(run, args, kwargs, outcome, leaves))

    @contextmanager
    def listened(self) -> Iterator[None]:
        """Hooks the modules while it lasts."""
        with ExitStack() as stack:
            for module in (*self.networks, *self.modules):
                before = module.register_forward_pre_hook(self._before, with_kwargs=True)  # pyright: ignore[reportAttributeAccessIssue]
                after = module.register_forward_hook(self._after, with_kwargs=True, always_call=True)  # pyright: ignore[reportAttributeAccessIssue]
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    @torch.compiler.disable
    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if self.is_paused:
            return None
        self.depth += 1
        if self.depth > 1:  # a part of a module is not recorded by itself
            return None
        self.around = args, kwargs, self.entered, torch.is_grad_enabled()
        if self.entered:
            self.__exit__(None, None, None)
        return self._ask(module, args, kwargs) if module in self.networks else None

    def _ask(self, network: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        forward = original(network).forward
        self.given = by_name(forward, args, kwargs)
        if not self.due():
            return None
        torch.set_grad_enabled(True)
        first = next(iter(inspect.signature(forward).parameters))
        self.leaves = {
            id(x): _usable(x).detach().requires_grad_() for x in tensors(self.given[first]) if x.is_floating_point()
        }
        args, kwargs = each_tensor((args, kwargs), _usable)
        shown = each_tensor(self.given[first], lambda x: self.leaves.get(id(x), x))
        return ((shown, *args[1:]), kwargs) if args else (args, {**kwargs, first: shown})

    @torch.compiler.disable
    def _after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], outcome: Any) -> None:  # noqa: ANN401
        if self.is_paused:
            return
        self.depth -= 1
        if self.depth:
            return
        args, kwargs, entered, with_grad = self.around
        del self.around
        torch.set_grad_enabled(with_grad)
        if entered:
            self.__enter__()
            self.add(module, args, kwargs, outcome)


class Turn:
    """A turn of the loop that the pipeline has made, as a function of the sample and the time.

    The scheduler is to step from the sample, with the output that the pipeline made of the network's answers; the
    pipeline made the sample from what the scheduler's last step returned, None at first.
    """

    def __init__(
        self, recording: Recording, sample: Tensor, time: object, output: Tensor, returned: Tensor | None
    ) -> None:
        self.recording = recording
        self.sample, self.time, self.output, self.returned = sample, time, output, returned
        self.calls = _leading_to(recording.calls, [sample, output])

    def __call__(self, sample: Tensor, time: Tensor | None = None) -> Tensor:
        """Returns what the pipeline would have made of another sample, at its own time or at another."""
        known = {id(self.sample): sample} | ({} if time is None else {id(self.time): time})
        return _result(self._run(self.calls, known), self.output)

    def sample_from(self, returned: Tensor) -> Tensor:
        """Returns the sample that the pipeline would have made of another that its scheduler returned."""
        if self.returned is self.sample:
            return returned
        calls = _leading_to(self.calls, [self.sample])
        return _result(self._run(calls, {id(self.returned): returned}), self.sample)

    def linked(self, sample: Tensor) -> Tensor:
        """Returns the output as a function of the sample, by the graphs of the pipeline's own calls of the network."""
        return _result(self._run(self.calls, {id(self.sample): sample}, linked=True), self.output)

    def time_of(self, value: float) -> Tensor:
        """Returns another time, as the scheduler's is held."""
        reached, asked = {id(self.time)}, False
        for call in self.calls:
            if any(id(x) in reached for x in tensors((call.args, call.kwargs))):
                reached |= {id(x) for x in tensors(call.outcome)}
                asked |= call.run in self.recording.networks
        if not isinstance(self.time, Tensor) or not asked:
            raise InputError(
                "input: lookahead asks the network at another time, but the time that this pipeline gives its network "
                "does not come from the scheduler's; use the denoised input"
            )
        dtype = self.time.dtype if self.time.is_floating_point() else torch.float32
        return self.time.new_full(self.time.shape, value, dtype=dtype)

    def _run(self, calls: Iterable[_Call], known: dict[int, Tensor], *, linked: bool = False) -> dict[int, Tensor]:
        """Runs the operations that a known tensor enters, and returns all known values by the ids of their tensors.

        If linked, the answers of networks stay as they were, where they have a graph.
        """

        def renewed(x: Tensor) -> Tensor:
            return known[id(x)] if id(x) in known else _usable(x)

        with self.recording.paused():
            for call in calls:
                if not any(id(x) in known for x in tensors((call.args, call.kwargs))):
                    continue
                answers = [x for x in tensors(call.outcome) if x.requires_grad]
                if linked and call.leaves and answers:
                    if call.leaves.keys() & known.keys():  # what else enters, a ControlNet's residuals, is given
                        known |= zip(map(id, answers), _linked(answers, call.leaves, known), strict=True)
                    continue
                args, kwargs = each_tensor((call.args, call.kwargs), renewed)
                if _in_place(call.run):
                    args = (args[0].clone(), *args[1:])
                outcome = call.run(*args, **kwargs)
                outcome = args[0] if call.run is Tensor.__setitem__ else outcome
                if linked and call.run in self.recording.networks:
                    _check_graph(outcome)
                for old, new in zip(tensors(call.outcome), tensors(outcome), strict=True):
                    known[id(old)] = new
        return known


def _result(known: Mapping[int, Tensor], wanted: Tensor) -> Tensor:
    if id(wanted) not in known:
        raise InputError(
            "pipe: what enters its network does not come from the sample that its scheduler is given, so that the "
            "network cannot be asked again; use the denoised or noisy input, without recurrence and particles"
        )
    return known[id(wanted)]


def _linked(answers: Sequence[Tensor], leaves: Mapping[int, Tensor], known: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
    """Returns a network's answers as functions of the known tensors of its input, by the graph from the leaves."""
    entered = {key: leaf for key, leaf in leaves.items() if key in known}

    def pull(grads: Sequence[Tensor]) -> Sequence[Tensor | None]:
        return torch.autograd.grad(answers, tuple(entered.values()), grads, retain_graph=True, allow_unused=True)

    linked: Any = _Link.apply(pull, len(answers), *answers, *(known[key] for key in entered))
    return linked


def _check_graph(outcome: Any) -> None:  # noqa: ANN401
    if not any(x.requires_grad for x in tensors(outcome)):
        raise InputError(
            "gradient with respect to x_t: no gradient leads from the network's answer to its input, as when the "
            "network is quantised without one; take it with respect to x0_hat (wrt x0_hat)"
        )


class _Link(torch.autograd.Function):
    """Values whose gradient is that of a network's answers, pulled back to its input."""

    @staticmethod
    def forward(ctx: Any, pull: Callable[[Sequence[Tensor]], Any], count: int, *given: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.pull, ctx.count = pull, count
        return tuple(x.detach().clone() for x in given[:count])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # noqa: ANN401
        return None, None, *[None] * ctx.count, *ctx.pull(grad_outputs)


def _leading_to(calls: Sequence[_Call], wanted: Iterable[Tensor]) -> list[_Call]:
    """Returns the operations that some tensors come from."""
    needed, leading = {id(x) for x in wanted}, []
    for call in reversed(calls):
        if any(id(x) in needed for x in tensors(call.outcome)):
            leading.append(call)
            needed |= {id(x) for x in tensors((call.args, call.kwargs))}
    return leading[::-1]


def original(module: nn.Module) -> nn.Module:
    """Returns the module that `torch.compile` has wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def _usable(x: Tensor) -> Tensor:
    """Returns a tensor that a gradient can pass: one that was made in inference mode, copied."""
    return x.clone() if x.is_inference() else x


def _in_place(func: Callable[..., Any]) -> bool:
    """Whether an operation changes its first argument."""
    name = getattr(func, "__name__", "")
    return name == "__setitem__" or name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
