// The scalar mathematics of one row of the dual-mode loss: everything between its statistics and its gradient.
#pragma once

#include <cmath>

namespace policy_split {

struct TokenLoss {
  double loss, kl, grad_logprob, grad_entropy;
  bool clipped;
};

enum Surrogate { clip = 0, cispo = 1, sapo = 2 };

struct PolicyTerms {
  Surrogate surrogate;
  double clip_low, clip_high, clip_delta;  // clip_delta: NaN where there is no upper bound
  double sampler_cap;
  double sapo_positive, sapo_negative;  // temperatures of advantages above 0, and of the others
  bool kl_weighted;                     // by the ratio
  double kl_cap;                        // NaN where there is none
};

// The last three are null where there are none.
struct TokenInputs {
  double advantage, weight, entropy_coef, kl_coef;
  const double *old, *reference, *sampler;
};

struct Objective {
  double value, gradient;  // by the log of the ratio
  bool clipped;
};

struct Estimate {
  double value, gradient;  // by the log-prob
};

inline double scaled(double coef, double x) { return coef == 0 ? 0.0 : coef * x; }

// reference/loss.py, soft_gate, times the advantage.
inline Objective soft_objective(double ratio, double advantage, double temperature) {
  const double x = temperature * (ratio - 1), gate = 1 / (1 + std::exp(-x)), rest = 1 / (1 + std::exp(x));
  return {4 / temperature * gate * advantage, 4 * scaled(gate * rest, ratio) * advantage, false};
}

// reference/loss.py, policy_objective.
inline Objective policy_objective(double ratio, double logprob, double advantage, const PolicyTerms& terms) {
  if (terms.surrogate == sapo)
    return soft_objective(ratio, advantage, advantage > 0 ? terms.sapo_positive : terms.sapo_negative);
  const double low = 1 - terms.clip_low, high = 1 + terms.clip_high;
  const double clip_ratio = ratio < low ? low : ratio > high ? high : ratio, clip_objective = clip_ratio * advantage;
  if (terms.surrogate == cispo)
    return {scaled(clip_objective, logprob), clip_objective, clip_objective < ratio * advantage};
  const bool above = advantage < 0 && ratio > terms.clip_delta;
  const double objective = (above ? terms.clip_delta : ratio) * advantage;
  const bool outside = clip_objective < objective, clipped = outside || above;
  return {outside ? clip_objective : objective, clipped ? 0.0 : ratio * advantage, clipped};
}

// reference/loss.py, reference_kl; `ratio` is that of the token.
inline Estimate reference_kl(double logprob, double reference, double old, double ratio, const PolicyTerms& terms) {
  const double x = reference - logprob, grown = std::expm1(x);
  Estimate kl = {grown - x, -grown};
  if (terms.kl_weighted) {
    const double far = std::exp(reference - old) - scaled(ratio, x + 1);
    kl = {std::fabs(x) < 1 ? ratio * kl.value : far, -scaled(ratio, x)};
  }
  return kl.value > terms.kl_cap ? Estimate{terms.kl_cap, 0} : kl;
}

inline TokenLoss token_loss(double logprob, double entropy, const TokenInputs& in, const PolicyTerms& terms) {
  const double ratio = in.old ? std::exp(logprob - *in.old) : std::isnan(logprob) ? logprob : 1.0;
  double advantage = in.advantage;
  if (in.sampler) {
    const double correction = std::exp((in.old ? *in.old : logprob) - *in.sampler);
    advantage *= correction > terms.sampler_cap ? terms.sampler_cap : correction;
  }
  const Objective objective = policy_objective(ratio, logprob, advantage, terms);
  Estimate kl = {0, 0};
  if (in.reference) kl = reference_kl(logprob, *in.reference, in.old ? *in.old : logprob, ratio, terms);
  const double loss = in.weight * (-objective.value - scaled(in.entropy_coef, entropy) + scaled(in.kl_coef, kl.value));
  const double grad_logprob = in.weight * (-objective.gradient + scaled(in.kl_coef, kl.gradient));
  return {loss, kl.value, grad_logprob, -in.weight * in.entropy_coef, objective.clipped};
}

}  // namespace policy_split
