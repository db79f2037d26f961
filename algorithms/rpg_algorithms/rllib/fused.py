"""The minibatch step without autograd: forward, gradient, clipping and Adam on one flat buffer, in numpy.

For the networks of this field (multilayer perceptrons, minibatches of 64 to a few hundred) a step is a few hundred
microseconds of arithmetic, and autograd's bookkeeping costs more than that. This engine derives the gradient from the
network's specification: any depth and widths, relu, tanh or elu, every action distribution. Tests hold it to
autograd's loss and parameters. It needs no compiler, so a trial starts at once.

All trainable parameters are views into one flat torch tensor, ordered layer by layer, actor and critic side by side,
and Adam's moments likewise; torch's module, optimizer, checkpoints and the eager engine see the same memory.

Dimension letters: B minibatch, D observation size, P size of the policy's output, A action dimensions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rpg_algorithms.addons import Array
from rpg_algorithms.maths.distributions import HALF_LOG_2PI
from rpg_algorithms.policies import numpy_policy
from rpg_algorithms.policies.graph_ops import np_log_softmax
from rpg_algorithms.policies.told import np_features
from rpg_algorithms.rllib.flat import FlatAdam, FlatParameters
from rpg_algorithms.rllib.module import ActorCriticModule

ACTIVATIONS = ("relu", "tanh", "elu")


@dataclass(frozen=True)
class UpdateSettings:
    """The settings of the algorithm's configuration that the loss and the step need."""

    clip: float
    vf_loss_coeff: float
    vf_clip: float | None
    entropy_coeff: float
    standardize: bool
    grad_clip: float | None


@dataclass
class _Layer:
    """One layer of the networks that run side by side: views of parameters and of their gradients."""

    weights: list[Array]
    weight: Array  # of all networks, joined; used where they have the same input
    biases: Array  # of all networks, joined
    weight_grads: list[Array]
    weight_grad: Array
    bias_grads: Array
    splits: list[slice]  # each network's columns in the joined output


class FusedUpdate:
    """Epochs of minibatch steps on an actor-critic module.

    Args:
        module: its trainable parameters are re-homed.
        optimizer: an Adam over exactly these parameters; its betas, epsilon and learning rate are read at every epoch.
        settings: of the loss.
        average_gradient: called with the flat gradient before clipping, to average it between learners.
    """

    def __init__(
        self,
        module: ActorCriticModule,
        optimizer: torch.optim.Optimizer,
        settings: UpdateSettings,
        average_gradient: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.module, self.settings, self._average = module, settings, average_gradient
        self.spec = module.policy.spec
        networks = [_linears(module.policy.mlp), _linears(module.critic)]
        joint = len(networks[0]) == len(networks[1]) and _activation(module.policy.mlp) == _activation(module.critic)
        bundles = [networks] if joint else [[networks[0]], [networks[1]]]
        order = [[p for layer in zip(*b, strict=True) for p in _joined(layer)] for b in bundles]
        if module.policy.log_std is not None:
            order.append([module.policy.log_std])
        if module.policy.log_std_context is not None:
            order.append([module.policy.log_std_context])
        self.flat = FlatParameters(order, optimizer)
        activations = [_activation(module.policy.mlp), _activation(module.critic)]
        self.stacks = [
            _Stack([self._layer(layer) for layer in zip(*b, strict=True)], activations[i])
            for i, b in enumerate(bundles)
        ]
        self._log_std = self._log_std_grad = None
        if module.policy.log_std is not None:
            self._log_std = self.flat.view(self.flat.value, module.policy.log_std).numpy()
            self._log_std_grad = self.flat.view(self.flat.grad, module.policy.log_std).numpy()
        self._told = self._told_grad = None
        if module.policy.log_std_context is not None:
            self._told = self.flat.view(self.flat.value, module.policy.log_std_context).numpy()
            self._told_grad = self.flat.view(self.flat.grad, module.policy.log_std_context).numpy()
        self._scratch = np.empty(len(self.flat.value), np.float32)

    @staticmethod
    def supports(module: ActorCriticModule, optimizer: torch.optim.Optimizer) -> bool:
        """Says whether this engine can train the module: perceptrons on the CPU, known activations, plain Adam."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        group = optimizer.param_groups[0]
        return (
            all(p.device.type == "cpu" and p.dtype == torch.float32 for p in parameters)
            and {id(p) for p in parameters} == {id(p) for p in group["params"]}
            and module.policy.graph is None
            and all(_activation(m) in ACTIVATIONS for m in (module.policy.mlp, module.critic))
            and type(optimizer) is torch.optim.Adam
            and not (group["weight_decay"] or group["amsgrad"] or group["maximize"])
        )

    def _layer(self, linears: Sequence[nn.Linear]) -> _Layer:
        flat = self.flat
        ends = np.cumsum([0, *(linear.out_features for linear in linears)])
        parameters = _joined(linears)
        weights, biases = parameters[: len(linears)], parameters[len(linears) :]
        first, last = flat.slices[biases[0]].start, flat.slices[biases[-1]].stop
        start, joined = flat.slices[weights[0]].start, (-1, weights[0].shape[1])
        same_input = all(weight.shape[1] == joined[1] for weight in weights)
        stop = first if same_input else start  # nothing to join where the networks' widths differ
        return _Layer(
            [flat.view(flat.value, weight).numpy() for weight in weights],
            flat.value[start:stop].numpy().reshape(joined),
            flat.value[first:last].numpy(),
            [flat.view(flat.grad, weight).numpy() for weight in weights],
            flat.grad[start:stop].numpy().reshape(joined),
            flat.grad[first:last].numpy(),
            [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)],
        )

    # --- an epoch

    def epoch(
        self,
        obs: Tensor,
        actions: Tensor,
        logp_old: Tensor,
        advantage: Tensor,
        target: Tensor,
        size: int,
        count: int,
        kl_limit: float = math.inf,
    ) -> tuple[Tensor, int]:
        """Takes steps on consecutive minibatches until one's approximate KL exceeds the limit.

        Args:
            obs: ``[B', D]`` what ``PolicyNetwork.normalize`` gave, shuffled; the first ``count * size`` are used.
            actions: ``[B', A]`` or ``[B']`` as sampled.
            logp_old: ``[B']`` under the policy that acted, nats.
            advantage: ``[B']``.
            target: ``[B']`` value targets.
            size: minibatch size.
            count: number of minibatches.
            kl_limit: no step is taken on a minibatch with a larger KL(pi_old || pi_theta), nats, nor after it.

        Returns:
            ``[looked at, 6]``: policy loss, value loss, approximate KL, clip fraction, entropy and gradient norm; and
            the number of steps taken.
        """
        if not self.flat.moments_are_ours():
            self.flat.adopt_moments()
        cut = slice(0, count * size)
        x, a, lo, ad, tg = (
            t.numpy()[cut].reshape(count, size, *t.shape[1:]) for t in (obs, actions, logp_old, advantage, target)
        )
        squash = None
        if self.spec.distribution == "squashed_gaussian":
            squash = numpy_policy.log_tanh_slope(a).sum(-1)  # constant in the parameters
            lo = lo + squash  # the Gaussian's own log-probability, whose gradient is the same
        if self.settings.standardize and size > 1:
            ad = ad - ad.mean(1, keepdims=True)
            ad /= ad.std(1, ddof=1, keepdims=True) + np.float32(1e-8)
        told = None if self._told is None else np_features(x[..., self.spec.observation_size : self.spec.row_size])
        log = _Log.allocate(count, size)
        taken = count
        with FlatAdam(self.flat) as adam:
            for i in range(count):
                self._gradient(x[i], a[i], lo[i], ad[i], tg[i], None if told is None else told[i], log, i)
                if kl_limit < math.inf and self._kl(log.log_ratio[i]) > kl_limit:
                    taken = i
                    break
                if self._average is not None:
                    self._average(self.flat.grad)
                log.norm[i] = self._clip()
                adam.step(self._scratch)
        if squash is not None:
            log.entropy[:] = (squash - lo - log.log_ratio).mean(1)  # -log pi of what was sampled
        return torch.from_numpy(log.statistics(self.settings.clip)[: taken + 1]), taken

    def _kl(self, log_ratio: Array) -> float:
        """The approximate KL of a minibatch (k3), of all learners'."""
        kl = float((np.expm1(log_ratio) - log_ratio).mean())
        if self._average is None:
            return kl
        shared = torch.tensor([kl])
        self._average(shared)
        return float(shared)

    def _gradient(
        self,
        x: Array,
        action: Array,
        logp_old: Array,
        advantage: Array,
        target: Array,
        told: Array | None,
        log: _Log,
        i: int,
    ) -> None:
        """Fills the flat gradient and row ``i`` of the log."""
        s, scale = self.settings, np.float32(-1.0 / len(x))
        outputs = [out for stack in self.stacks for out in stack.forward(x)]
        policy, value = outputs[0], outputs[1][:, 0]
        if self.spec.distribution == "categorical":
            logp, log.entropy[i], backward = self._categorical(policy, action)
        else:
            logp, log.entropy[i], backward = self._gaussian(policy, action, told)
        log_ratio = np.subtract(logp, logp_old, out=log.log_ratio[i])
        ratio = np.exp(log_ratio)
        unclipped = ratio * advantage
        clipped = np.minimum(np.maximum(ratio, np.float32(1.0 - s.clip)), np.float32(1.0 + s.clip)) * advantage
        surrogate = np.minimum(unclipped, clipped, out=log.surrogate[i])
        error = value - target
        squared = np.multiply(error, error, out=log.squared[i])
        error *= np.float32(-2.0 * s.vf_loss_coeff) * scale
        if s.vf_clip is not None:
            error *= squared <= s.vf_clip
            np.minimum(squared, np.float32(s.vf_clip), out=squared)
        # Where the clipped branch is the smaller one, no gradient flows.
        logp_grad = unclipped * scale
        logp_grad *= unclipped == surrogate
        policy_grad = backward(logp_grad, np.float32(s.entropy_coeff) * scale)
        value_grad = error
        grads = [policy_grad, value_grad[:, None]]
        if len(self.stacks) == 1:
            self.stacks[0].backward(x, grads)
        else:
            for stack, grad in zip(self.stacks, grads, strict=True):
                stack.backward(x, [grad])

    def _gaussian(
        self, out: Array, action: Array, told: Array | None
    ) -> tuple[Array, float, Callable[[Array, Any], Array]]:
        """``logp`` (before squashing's constant), mean entropy, and the gradient with respect to the outputs.

        ``told`` are the features of what the policy is told, ``[B, F]``.
        """
        a = self.spec.action_size
        mean, raw = out[:, :a], out[:, a:]
        free = self._log_std
        if free is None:
            log_std = np.clip(raw, *self.spec.log_std_bounds)
        elif told is None:
            log_std = free
        else:
            assert self._told is not None
            log_std = told @ self._told.T
            log_std += free
        inverse = np.exp(-log_std)
        z = (action - mean) * inverse
        zz = z * z
        total = np.add.reduce(log_std, -1)
        logp = np.add.reduce(zz, -1)
        logp *= np.float32(-0.5)
        logp -= total + np.float32(a * HALF_LOG_2PI)
        entropy = float(total.mean()) + a * (0.5 + HALF_LOG_2PI)

        def backward(logp_grad: Array, entropy_grad: Any) -> Array:
            column = logp_grad[:, None]
            mean_grad = z * inverse
            mean_grad *= column
            std_grad = zz - np.float32(1.0)
            if free is not None and told is None:  # one product instead of a sum over the minibatch
                np.matmul(logp_grad, std_grad, out=self._log_std_grad)
                if entropy_grad:
                    self._log_std_grad += entropy_grad * np.float32(len(zz))
                return np.asarray(mean_grad)
            std_grad *= column
            if entropy_grad:
                std_grad += entropy_grad
            if told is not None:
                np.matmul(self.stacks[0].ones, std_grad, out=self._log_std_grad)
                np.matmul(std_grad.T, told, out=self._told_grad)
                return np.asarray(mean_grad)
            low, high = self.spec.log_std_bounds
            std_grad *= (raw >= low) & (raw <= high)
            return np.concatenate((mean_grad, std_grad), axis=1)

        return logp, entropy, backward

    def _categorical(self, out: Array, action: Array) -> tuple[Array, float, Callable[[Array, Any], Array]]:
        log_probs = np_log_softmax(out)
        probs = np.exp(log_probs)
        rows = np.arange(len(out))
        entropies = -(probs * log_probs).sum(-1)

        def backward(logp_grad: Array, entropy_grad: Any) -> Array:
            grad = -probs * logp_grad[:, None]
            grad[rows, action] += logp_grad
            if entropy_grad:
                grad -= entropy_grad * probs * (log_probs + entropies[:, None])
            return np.asarray(grad)

        return log_probs[rows, action], float(entropies.mean()), backward

    def _clip(self) -> float:
        grad, limit = self.flat.grad.numpy(), self.settings.grad_clip
        norm = math.sqrt(float(grad @ grad))
        if limit is not None:
            coefficient = limit / (norm + 1e-6)
            if coefficient < 1.0:
                np.multiply(grad, np.float32(coefficient), out=grad)
        return norm


@dataclass
class _Log:
    """The values that an epoch's steps record, from which the statistics are computed once."""

    log_ratio: Array  # [count, B]
    surrogate: Array
    squared: Array
    entropy: Array  # [count]
    norm: Array

    @classmethod
    def allocate(cls, count: int, size: int) -> _Log:
        """Allocates memory for ``count`` minibatches of ``size``."""
        log_ratio, surrogate, squared = np.zeros((3, count, size), np.float32)
        entropy, norm = np.zeros((2, count), np.float32)
        return cls(log_ratio, surrogate, squared, entropy, norm)

    def statistics(self, clip: float) -> Array:
        """Returns the statistics ``[count, 6]``, see ``FusedUpdate.epoch``."""
        excess = np.expm1(self.log_ratio)
        columns = (
            -self.surrogate.mean(1),
            self.squared.mean(1),
            (excess - self.log_ratio).mean(1),
            (np.abs(excess) > clip).mean(1, dtype=np.float32),
            self.entropy,
            self.norm,
        )
        return np.stack(columns, axis=1)


class _Stack:
    """Networks of the same depth on the same input, run layer by layer side by side."""

    def __init__(self, layers: list[_Layer], activation: str) -> None:
        self.layers, self.activation = layers, activation
        self._rows = -1
        self._hidden: list[Array] = []
        self._grads: list[Array] = []
        self._out: Array
        self.ones: Array

    def _allocate(self, rows: int) -> None:
        widths = [len(layer.biases) for layer in self.layers]
        self._rows = rows
        self.ones = np.ones(rows, np.float32)  # a product with it sums faster than numpy's reduction
        self._hidden = [np.empty((rows, w), np.float32) for w in widths[:-1]]
        self._grads = [np.empty((rows, w), np.float32) for w in widths[:-1]]
        self._out = np.empty((rows, widths[-1]), np.float32)

    def forward(self, x: Array) -> list[Array]:
        """Returns each network's output ``[B, P]`` and keeps the hidden layers for ``backward``."""
        if len(x) != self._rows:
            self._allocate(len(x))
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            out = self._out if last else self._hidden[i]
            if i == 0:  # one input for all networks: one product
                np.matmul(x, layer.weight.T, out=out)
            else:
                for k, weight in enumerate(layer.weights):
                    np.matmul(self._input(x, i, k), weight.T, out=out[:, layer.splits[k]])
            out += layer.biases
            if last:
                break
            active = numpy_policy.ACTIVATIONS[self.activation](out)
            if active is not out:
                np.copyto(out, active)
        return [self._out[:, split] for split in self.layers[-1].splits]

    def _input(self, x: Array, layer: int, network: int) -> Array:
        return x if layer == 0 else self._hidden[layer - 1][:, self.layers[layer - 1].splits[network]]

    def backward(self, x: Array, output_grads: Sequence[Array]) -> None:
        """Fills the gradients of weights and biases from the outputs' gradients, and overwrites the hidden layers."""
        grads: Sequence[Array] = output_grads
        for i in range(len(self.layers) - 1, -1, -1):
            layer = self.layers[i]
            if i == len(self.layers) - 1:
                for split, grad in zip(layer.splits, grads, strict=True):
                    np.matmul(self.ones, grad, out=layer.bias_grads[split])
            else:
                np.matmul(self.ones, self._grads[i], out=layer.bias_grads)
            if i == 0 and len(self.layers) > 1:
                np.matmul(self._grads[0].T, x, out=layer.weight_grad)
                return
            for k, grad in enumerate(grads):
                np.matmul(grad.T, self._input(x, i, k), out=layer.weight_grads[k])
            if i == 0:
                return
            below, hidden = self._grads[i - 1], self._hidden[i - 1]
            for k, grad in enumerate(grads):
                np.matmul(grad, layer.weights[k], out=below[:, self.layers[i - 1].splits[k]])
            if self.activation == "tanh":
                np.multiply(hidden, hidden, out=hidden)
                np.subtract(np.float32(1.0), hidden, out=hidden)
                below *= hidden
            elif self.activation == "relu":
                below *= hidden > 0
            else:
                below *= np.where(hidden > 0, np.float32(1.0), hidden + np.float32(1.0))
            grads = [below[:, split] for split in self.layers[i - 1].splits]


def _linears(mlp: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in mlp if isinstance(layer, nn.Linear)]


def _activation(mlp: nn.Sequential) -> str:
    """Returns the name of an MLP's activation: ``relu`` without a hidden layer, ``mixed`` if it has several."""
    names = {type(layer).__name__.lower() for layer in mlp if not isinstance(layer, nn.Linear)}
    return names.pop() if len(names) == 1 else ("relu" if not names else "mixed")


def _joined(linears: Sequence[nn.Linear]) -> list[nn.Parameter]:
    """Returns the parameters of one layer in memory order: all weights, then all biases."""
    parameters: list[Any] = [*(linear.weight for linear in linears), *(linear.bias for linear in linears)]
    return parameters
