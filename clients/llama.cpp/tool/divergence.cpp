// SPDX-License-Identifier: Apache-2.0
#include <skvq/llama_tools.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace skvq
{

uint32_t top_token(const float *logits, uint32_t n)
{
	return static_cast<uint32_t>(std::max_element(logits, logits + n) - logits);
}

double log_sum_exp(const float *logits, uint32_t n)
{
	const float max = logits[top_token(logits, n)];
	double sum = 0;
	for (uint32_t i = 0; i < n; ++i)
		sum += static_cast<double>(std::exp(logits[i] - max));
	return static_cast<double>(max) + std::log(sum);
}

double kl_divergence(const float *reference, const float *other, uint32_t n)
{
	return Distribution(reference, n).compare(other).kl;
}

// Probabilities are kept as float: their rounding moves a sum of differences of logarithms by no
// more than 1e-7 of itself. The differences are taken in double, so that equal logits give 0.
Distribution::Distribution(const float *logits, uint32_t n)
    : logits_(logits), log_sum_exp_(skvq::log_sum_exp(logits, n)), top_(skvq::top_token(logits, n)),
      probability_(n)
{
	const float max = logits[top_];
	const float scale = static_cast<float>(std::exp(static_cast<double>(max) - log_sum_exp_));
	for (uint32_t i = 0; i < n; ++i)
		probability_[i] = scale * std::exp(logits[i] - max);
}

Distribution::Compared Distribution::compare(const float *other) const
{
	const uint32_t n = static_cast<uint32_t>(probability_.size());
	Compared compared;
	compared.log_sum_exp = skvq::log_sum_exp(other, n);
	const double shift = log_sum_exp_ - compared.log_sum_exp;
	double sum = 0;
	for (uint32_t i = 0; i < n; ++i)
		sum += static_cast<double>(probability_[i]) *
		       (static_cast<double>(logits_[i]) - static_cast<double>(other[i]) - shift);
	compared.kl = std::max(sum, 0.0); // rounding may leave equal distributions just below
	compared.same_top = top_token(other, n) == top_;
	return compared;
}

void Divergence::add(const float *reference, const float *other, uint32_t n)
{
	add(Distribution(reference, n).compare(other));
}

void Divergence::add(const Distribution::Compared &compared)
{
	klds_.push_back(compared.kl);
	n_same_ += compared.same_top;
}

double Divergence::mean() const
{
	if (klds_.empty())
		return 0;
	return std::accumulate(klds_.begin(), klds_.end(), 0.0) / static_cast<double>(klds_.size());
}

double Divergence::max() const
{
	return quantile(1);
}

double Divergence::quantile(double q) const
{
	if (klds_.empty())
		return 0;
	std::vector<double> sorted = klds_;
	const double rank = std::ceil(q * static_cast<double>(sorted.size()));
	const size_t at = rank < 1 ? 0 : std::min(sorted.size(), static_cast<size_t>(rank)) - 1;
	std::nth_element(sorted.begin(), sorted.begin() + static_cast<std::ptrdiff_t>(at),
			 sorted.end());
	return sorted[at];
}

double Divergence::top1_same() const
{
	return klds_.empty() ? 0 : static_cast<double>(n_same_) / static_cast<double>(klds_.size());
}

} // namespace skvq
