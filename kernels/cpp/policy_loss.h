// The scalar mathematics of one row of the dual-mode loss: everything between its statistics and its gradient.
#pragma once

#include <cmath>

namespace policy_split {

struct TokenLoss {
  double loss, kl, grad_logprob, grad_entropy;
  bool clipped;
};

enum Surrogate { clip = 0, cispo = 1 };

struct PolicyTerms {
  Surrogate surrogate;
  double clip_low, clip_high, clip_delta;  // clip_delta: NaN where there is no upper bound
  double sampler_cap;
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

inline double scaled(double coef, double x) { return coef == 0 ? 0.0 : coef * x; }

// reference/loss.py, policy_objective.
inline Objective policy_objective(double ratio, double logprob, double advantage, const PolicyTerms& terms) {
  const double low = 1 - terms.clip_low, high = 1 + terms.clip_high;
  const double clip_ratio = ratio < low ? low : ratio > high ? high : ratio, clip_objective = clip_ratio * advantage;
  if (terms.surrogate == cispo)
    return {scaled(clip_objective, logprob), clip_objective, clip_objective < ratio * advantage};
  const bool above = advantage < 0 && ratio > terms.clip_delta;
  const double objective = (above ? terms.clip_delta : ratio) * advantage;
  const bool outside = clip_objective < objective, clipped = outside || above;
  return {outside ? clip_objective : objective, clipped ? 0.0 : ratio * advantage, clipped};
}

inline TokenLoss token_loss(double logprob, double entropy, const TokenInputs& in, const PolicyTerms& terms) {
  const double ratio = in.old ? std::exp(logprob - *in.old) : std::isnan(logprob) ? logprob : 1.0;
  double advantage = in.advantage;
  if (in.sampler) {
    const double correction = std::exp((in.old ? *in.old : logprob) - *in.sampler);
    advantage *= correction > terms.sampler_cap ? terms.sampler_cap : correction;
  }
  const Objective objective = policy_objective(ratio, logprob, advantage, terms);
  double kl = 0, grad_kl = 0;
  if (in.reference) {
    grad_kl = -std::expm1(*in.reference - logprob);
    kl = -grad_kl - (*in.reference - logprob);
  }
  const double loss = in.weight * (-objective.value - scaled(in.entropy_coef, entropy) + scaled(in.kl_coef, kl));
  const double grad_logprob = in.weight * (-objective.gradient + scaled(in.kl_coef, grad_kl));
  return {loss, kl, grad_logprob, -in.weight * in.entropy_coef, objective.clipped};
}

}  // namespace policy_split
