"""What makes it fast or lean and changes no result. Every part has a test that says so."""
import contextlib
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def packed_linear(weight, bias, x):
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def multiplies(dtype):
    """Whether oneDNN is there and multiplies this type on this processor."""
    return torch.backends.mkldnn.is_available() and (
        dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())


PACK_AT_MOST = 1e9  # weights: packed ones are a second copy in memory


@contextlib.contextmanager
def packed_weights(model):
    """Inside it, on a CPU, frozen linear layers multiply by copies of their weights that lie in
    memory as oneDNN wants them. A decode step has so few rows that otherwise rearranging weights
    takes as long as multiplying: 1.5 to 1.9 times faster with 16 rows. The operators are those of
    torch's own compiler."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)
              and not m.weight.requires_grad and "forward" not in vars(m)]
    for m in model.modules():  # copies of weights that have begun to train
        if "packed" in vars(m) and m.weight.requires_grad:
            del m.packed, m.packed_from
    small = sum(m.weight.numel() for m in layers) <= PACK_AT_MOST
    if model.device.type != "cpu" or not small or not multiplies(model.dtype):
        layers = []
    for m in layers:
        now = m.weight.data_ptr(), m.weight._version
        if getattr(m, "packed_from", None) != now:
            m.packed = torch.ops.mkldnn._reorder_linear_weight(m.weight.detach())
            m.packed_from = now
        m.forward = partial(packed_linear, m.packed, m.bias)
    try:
        yield
    finally:
        for m in layers:
            del m.forward


def stretch(device):
    """-> tokens between two looks at which answers are finished; slots by which the part of the
    cache that is attended to grows. On a GPU a look waits for the device, and each new shape needs
    a new CUDA graph."""
    return (16, 256) if device.type == "cuda" else (1, 1)


def replayed(step, model):
    """step, a function without arguments that works in place on tensors of fixed shapes. On a GPU
    its second call records the kernels in a CUDA graph and later ones replay that: a decode step is
    hundreds of small kernels, which Python launches more slowly than the GPU does their work."""
    if model.device.type != "cuda" or getattr(model, "asks_host", False):
        return step
    graph, calls = torch.cuda.CUDAGraph(), 0

    def call():
        nonlocal calls
        calls += 1
        if getattr(model, "asks_host", False):
            return step()
        if calls == 1:  # not recorded: libraries set themselves up, on a stream aside as it must be
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                try:
                    torch.cuda.set_sync_debug_mode("error")
                    step()
                except RuntimeError:  # some models wait for the GPU to choose experts or positions:
                    model.asks_host = True  # not to be recorded
                finally:
                    torch.cuda.set_sync_debug_mode("default")
                if getattr(model, "asks_host", False):
                    step()  # again: it waited before anything was moved on
            torch.cuda.current_stream().wait_stream(aside)
            return
        if calls == 2:
            # records, does not run; what other threads do in between is not its business
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                step()
        graph.replay()
    return call


def recompute_layers(model):
    """Gradient checkpointing: of every layer only the input is kept, the rest is computed again in
    the backward pass. transformers' own needs the model in train mode, with dropout."""
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = recomputed(layer.forward)


def recomputed(forward):
    def call(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
    return call
