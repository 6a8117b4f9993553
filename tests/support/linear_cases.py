"""Random LM heads: hidden states, a weight, targets, and the per-token numbers of a loss."""

import formulas
import torch

from policy_split import linear_dual_mode_loss, linear_logprobs_and_entropy, linear_token_loss

ENTROPY_COEF, KL_COEF = (0.3, 0.1), (0.05, 0.2)


class Head:
    def __init__(self, *, tokens=23, vocabulary=57, dim=8, dtype=torch.float32, bias=True, seed=0, masked=True):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def choice(high, *shape):
            return torch.randint(high, shape, generator=generator)

        self.dtype = dtype
        self.hidden = normal(tokens, dim).to(dtype).requires_grad_()
        self.weight = (normal(vocabulary, dim) * dim**-0.5).to(dtype).requires_grad_()
        self.bias = normal(vocabulary).to(dtype).requires_grad_() if bias else None
        self.targets = choice(vocabulary, tokens)
        self.mask = None
        if masked and tokens:
            self.targets[choice(tokens, max(1, tokens // 8))] = -100
            self.mask = torch.rand(tokens, generator=generator) > 0.3
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.tokens = {name: normal(tokens).to(wide) for name in ("advantages", "old_logprobs", "ref_logprobs")}
        self.tokens["old_logprobs"] -= 4
        self.tokens["ref_logprobs"] -= 4
        self.tokens["mode"] = choice(2, tokens)
        self.tokens["weights"] = torch.rand(tokens, generator=generator).to(wide)

    @property
    def leaves(self):
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]

    @property
    def valid(self):
        counted = self.targets != -100
        return counted if self.mask is None else counted & self.mask

    def dual_mode(self, hidden=None, weight=None, **options):
        settings = {"bias": self.bias, "mask": self.mask, "entropy_coef": ENTROPY_COEF, "kl_coef": KL_COEF}
        arguments = (self.hidden if hidden is None else hidden, self.weight if weight is None else weight)
        return linear_dual_mode_loss(*arguments, self.targets, **self.tokens | settings | options)

    def token_loss(self, loss_fn, **options):
        settings = {"bias": self.bias, "mask": self.mask, "weights": self.tokens["weights"]} | options
        return linear_token_loss(self.hidden, self.weight, self.targets, loss_fn, **settings)

    def statistics(self, **options):
        settings = {"bias": self.bias, "mask": self.mask} | options
        return linear_logprobs_and_entropy(self.hidden, self.weight, self.targets, **settings)

    def policy_loss(self, logprobs, entropy, index):
        """The dual-mode loss without its weights, as a loss_fn."""
        advantages, old, ref, mode = (
            self.tokens[name][index] for name in ("advantages", "old_logprobs", "ref_logprobs", "mode")
        )
        ratio = (logprobs - old).exp()
        policy = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
        kl = (ref - logprobs).exp() - (ref - logprobs) - 1
        entropy_coef, kl_coef = (torch.tensor(x, dtype=logprobs.dtype)[mode] for x in (ENTROPY_COEF, KL_COEF))
        return policy - entropy_coef * entropy + kl_coef * kl

    def logits(self, logit_scale=1.0):
        """In float64, differentiable in `exact`, the leaves in float64."""
        self.exact = [x.detach().double().requires_grad_() for x in self.leaves]
        hidden, weight, *bias = self.exact
        return logit_scale * torch.nn.functional.linear(hidden, weight, *bias)

    def truth(self, logit_scale=1.0, **options):
        """(the losses' sum, the vectors) in float64."""
        settings = {"entropy_coef": ENTROPY_COEF, "kl_coef": KL_COEF, "valid": self.valid} | options
        tokens = {name: x.double() if x.is_floating_point() else x for name, x in self.tokens.items()}
        losses, *rest = formulas.loss(self.logits(logit_scale), self.targets, **tokens | settings)
        return losses.sum(), rest


def relative_error(gradients, right):
    """The largest of the gradients' errors, each in units of its own norm."""
    return max(
        float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(gradients, right, strict=True)
    )
