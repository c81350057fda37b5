"""torch's own cases for nn.GRU and nn.GRUCell, from the module database of torch.testing, with our modules in place.

test_torch_cases.py runs this in a process of its own, since importing torch's test utilities freezes torch's global
switches. The checks are those that torch's own tests make of every module in the database.
"""

import copy
import pickle

import torch
from torch import nn
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db, modules
from torch.testing._internal.common_utils import (
    TestCase,
    freeze_rng_state,
    gradcheck,
    gradgradcheck,
    noncontiguous_like,
)
from torch.utils._pytree import tree_leaves, tree_map

import ser_fast

OURS = {nn.GRU: ser_fast.GRU, nn.GRUCell: ser_fast.GRUCell}


def ours(info):
    """torch's entry with our class, everything else as it is."""
    info = copy.copy(info)
    info.module_cls = OURS[info.module_cls]
    return info


CASES = [ours(info) for info in module_db if info.module_cls in OURS]


def inputs(info, device, dtype, training, requires_grad=False):
    """Every module of the entry with its forward arguments and its reference."""
    for case in info.module_inputs_func(
        info, device=device, dtype=dtype, requires_grad=requires_grad, training=training
    ):
        made, given = case.constructor_input, case.forward_input
        module = info.module_cls(*made.args, **made.kwargs).to(device).to(dtype).train(training)
        yield module, given.args, given.kwargs, case


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class TestModule(TestCase):
    precision = 1e-5
    rel_tol = 1e-5

    @modules(CASES)
    def test_forward(self, device, dtype, module_info, training):
        for module, args, kwargs, case in inputs(module_info, device, dtype, training):
            with freeze_rng_state():
                found = module(*args, **kwargs)
                self.assertEqual(found, case.reference_fn(module, *args, **kwargs))

    @modules(CASES)
    def test_equals_torch(self, device, dtype, module_info, training):
        theirs = {mine: peer for peer, mine in OURS.items()}[module_info.module_cls]
        for module, args, kwargs, case in inputs(module_info, device, dtype, training):
            made = case.constructor_input
            peer = theirs(*made.args, **made.kwargs).to(device).to(dtype).train(training)
            peer.load_state_dict(module.state_dict())
            self.assertEqual(module(*args, **kwargs), peer(*args, **kwargs))

    @modules(CASES)
    def test_factory_kwargs(self, device, dtype, module_info, training):
        for *_, case in inputs(module_info, device, dtype, training):
            made = case.constructor_input
            module = module_info.module_cls(*made.args, **made.kwargs, device=device, dtype=dtype)
            self.assertEqual({str(weight.device) for weight in module.parameters()}, {device})
            self.assertEqual({weight.dtype for weight in module.parameters()}, {dtype})

    @modules(CASES)
    def test_device_context(self, device, dtype, module_info, training):
        for *_, case in inputs(module_info, device, dtype, training):
            with torch.device("meta"):
                module = module_info.module_cls(*case.constructor_input.args, **case.constructor_input.kwargs)
            self.assertTrue(all(weight.is_meta for weight in module.parameters()))
            empty = module.to_empty(device=device)
            self.assertEqual({str(weight.device) for weight in empty.parameters()}, {device})

    @modules(CASES)
    def test_repr(self, device, dtype, module_info, training):
        for module, *_ in inputs(module_info, device, dtype, training):
            self.assertIn(str(module.hidden_size), repr(module))
            str(module)

    @modules(CASES)
    def test_serialisation(self, device, dtype, module_info, training):
        for module, args, kwargs, _ in inputs(module_info, device, dtype, training):
            expected = module(*args, **kwargs)
            for twin in (pickle.loads(pickle.dumps(module)), copy.deepcopy(module)):
                self.assertEqual(twin(*args, **kwargs), expected)
                self.assertEqual(twin.training, training)

    @modules(CASES)
    def test_non_contiguous_tensors(self, device, dtype, module_info, training):
        def spread(value):
            if not isinstance(value, torch.Tensor) or not value.numel():
                return value
            return noncontiguous_like(value)

        for module, args, kwargs, _ in inputs(module_info, device, dtype, training, requires_grad=True):
            results = []
            for arguments in (args, tree_map(spread, args)):
                leaves = tensors(arguments)
                outputs = tensors(module(*arguments, **kwargs))
                cotangents = [torch.ones_like(output) for output in outputs]
                gradients = torch.autograd.grad(outputs, [*leaves, *module.parameters()], cotangents)
                results.append((outputs, gradients))
            self.assertEqual(*results)

    @modules(CASES, allowed_dtypes=[torch.double])
    def test_grad(self, device, dtype, module_info, training):
        self.check_gradients(gradcheck, device, dtype, module_info, training)

    @modules(CASES, allowed_dtypes=[torch.double])
    def test_gradgrad(self, device, dtype, module_info, training):
        self.check_gradients(gradgradcheck, device, dtype, module_info, training)

    def check_gradients(self, check, device, dtype, info, training):
        for module, args, kwargs, _ in inputs(info, device, dtype, training, requires_grad=True):
            names = [name for name, _ in module.named_parameters()]

            def call(*leaves, module=module, args=args, kwargs=kwargs, names=names):
                given, weights = leaves[: len(args)], leaves[len(args) :]
                with freeze_rng_state():
                    return tuple(
                        tensors(torch.func.functional_call(module, dict(zip(names, weights)), given, kwargs))
                    )

            self.assertTrue(check(call, (*args, *module.parameters())))

    @modules(CASES)
    def test_to(self, device, dtype, module_info, training):
        other = {torch.float32: torch.float64, torch.float64: torch.float32}[dtype]
        for module, args, kwargs, _ in inputs(module_info, device, dtype, training):
            identities = [id(weight) for weight in module.parameters()]
            expected = module(*args, **kwargs)
            module.to(other).to(dtype)
            self.assertEqual([id(weight) for weight in module.parameters()], identities)
            self.assertEqual(module(*args, **kwargs), expected, atol=1e-5, rtol=1e-5)
            self.assertEqual({weight.dtype for weight in module.to(other).parameters()}, {other})

    @modules(CASES)
    def test_errors(self, device, dtype, module_info, training):
        for case in module_info.module_error_inputs_func(
            module_info, device=device, dtype=dtype, requires_grad=False, training=training
        ):
            made, given = case.module_error_input.constructor_input, case.module_error_input.forward_input

            def construct(made=made):
                return module_info.module_cls(*made.args, **made.kwargs)

            if case.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
                with self.assertRaisesRegex(case.error_type, case.error_regex):
                    construct()
            else:
                module = construct().to(device).to(dtype).train(training)
                with self.assertRaisesRegex(case.error_type, case.error_regex):
                    module(*given.args, **given.kwargs)


instantiate_device_type_tests(TestModule, globals())
