// The scalar mathematics of one row of the dual-mode loss: everything between its statistics and its gradient.
#pragma once

#include <cmath>

namespace policy_split {

struct TokenLoss {
  double loss, kl, grad_logprob, grad_entropy;
  bool clipped;
};

struct Clip {
  double low, high, delta;  // delta: NaN where there is no upper bound
};

inline double scaled(double coef, double x) { return coef == 0 ? 0.0 : coef * x; }

// old and reference are null where there are none.
inline TokenLoss token_loss(double logprob, double entropy, double advantage, const double* old,
                            const double* reference, double weight, double entropy_coef, double kl_coef,
                            const Clip& clip) {
  const double ratio = old ? std::exp(logprob - *old) : std::isnan(logprob) ? logprob : 1.0;
  const bool above = advantage < 0 && ratio > clip.delta;
  const double objective = (above ? clip.delta : ratio) * advantage;
  const double low = 1 - clip.low, high = 1 + clip.high;
  const double clip_objective = (ratio < low ? low : ratio > high ? high : ratio) * advantage;
  const bool outside = clip_objective < objective, clipped = outside || above;
  double kl = 0, grad_kl = 0;
  if (reference) {
    grad_kl = -std::expm1(*reference - logprob);
    kl = -grad_kl - (*reference - logprob);
  }
  const double surrogate = outside ? clip_objective : objective;
  const double loss = weight * (-surrogate - scaled(entropy_coef, entropy) + scaled(kl_coef, kl));
  const double grad_logprob = weight * ((clipped ? 0.0 : -advantage * ratio) + scaled(kl_coef, grad_kl));
  return {loss, kl, grad_logprob, -weight * entropy_coef, clipped};
}

}  // namespace policy_split
