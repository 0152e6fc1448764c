// SPDX-License-Identifier: Apache-2.0
//
// The figures skvq-llama and skvq-eval report, against values worked out by hand.
#include <cmath>

#include <skvq/llama_tools.hpp>

#include "cmocka_cpp.h"

namespace
{

bool near(double a, double b)
{
	return std::fabs(a - b) < 1e-7;
}

void kl_of_two_coins(void **)
{
	// p = (3/4, 1/4), q = (1/2, 1/2), both shifted: logits have no origin.
	const float p[] = {static_cast<float>(std::log(3.0)) + 5, 5};
	const float q[] = {-2, -2};
	const double want = 0.75 * std::log(1.5) + 0.25 * std::log(0.5);
	assert_true(near(skvq::kl_divergence(p, q, 2), want));
	assert_true(skvq::kl_divergence(p, p, 2) == 0.0);
	assert_true(near(skvq::log_sum_exp(q, 2), -2 + std::log(2.0)));
}

void large_logits_do_not_overflow(void **)
{
	const float p[] = {3000, -3000, 2999}, q[] = {2999, -3000, 3000};
	const double kl = skvq::kl_divergence(p, q, 3);
	assert_true(std::isfinite(kl) && kl > 0);
}

void summary(void **)
{
	const float p[] = {1, 0}, q[] = {0, 1};
	skvq::Divergence divergence;
	assert_true(divergence.empty() && divergence.mean() == 0 && divergence.max() == 0);
	for (int i = 0; i < 999; ++i)
		divergence.add(p, p, 2);
	divergence.add(p, q, 2);
	const double kl = skvq::kl_divergence(p, q, 2);
	assert_int_equal(divergence.count(), 1000);
	assert_true(near(divergence.mean(), kl / 1000));
	assert_true(divergence.max() == kl);
	assert_true(divergence.quantile(0.999) == 0); // the 999th of 1,000
	assert_true(divergence.quantile(1) == kl);
	assert_true(near(divergence.top1_same(), 0.999));
}

void first_of_equals_wins(void **)
{
	const float logits[] = {1, 3, 3, 2};
	assert_int_equal(skvq::top_token(logits, 4), 1);
}

void one_reference_many_others(void **)
{
	const float p[] = {0.5f, -1.25f, 3.0f, 2.0f}, q[] = {-4.0f, 0.0f, 3.5f, 1.0f};
	const skvq::Distribution reference(p, 4);
	const skvq::Distribution::Compared same = reference.compare(p), other = reference.compare(q);
	assert_true(same.kl == 0 && same.same_top && other.same_top);
	assert_true(near(other.log_sum_exp, skvq::log_sum_exp(q, 4)));
	double want = 0;
	for (int i = 0; i < 4; ++i) {
		const double log_p = static_cast<double>(p[i]) - skvq::log_sum_exp(p, 4);
		want += std::exp(log_p) *
			(log_p - static_cast<double>(q[i]) + skvq::log_sum_exp(q, 4));
	}
	assert_true(near(other.kl, want));
}

} // namespace

int main()
{
	const CMUnitTest tests[] = {
	    cmocka_unit_test(kl_of_two_coins),
	    cmocka_unit_test(one_reference_many_others),
	    cmocka_unit_test(large_logits_do_not_overflow),
	    cmocka_unit_test(summary),
	    cmocka_unit_test(first_of_equals_wins),
	};
	return cmocka_run_group_tests(tests, nullptr, nullptr);
}
