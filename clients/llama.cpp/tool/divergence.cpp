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
	const double max = static_cast<double>(logits[top_token(logits, n)]);
	double sum = 0;
	for (uint32_t i = 0; i < n; ++i)
		sum += std::exp(static_cast<double>(logits[i]) - max);
	return max + std::log(sum);
}

double kl_divergence(const float *reference, const float *other, uint32_t n)
{
	const double norm_p = log_sum_exp(reference, n);
	const double norm_q = log_sum_exp(other, n);
	double sum = 0;
	for (uint32_t i = 0; i < n; ++i) {
		const double log_p = static_cast<double>(reference[i]) - norm_p;
		const double log_q = static_cast<double>(other[i]) - norm_q;
		sum += std::exp(log_p) * (log_p - log_q);
	}
	return std::max(sum, 0.0); // rounding may leave equal distributions just below
}

void Divergence::add(const float *reference, const float *other, uint32_t n)
{
	klds_.push_back(kl_divergence(reference, other, n));
	n_same_ += top_token(reference, n) == top_token(other, n);
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
