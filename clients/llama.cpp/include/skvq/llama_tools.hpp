// SPDX-License-Identifier: Apache-2.0
//
// What the commands on top of skvq/llama_client.h share: a loaded model, the two engines they
// compare - ours and stock llama.cpp - behind one interface, and how far two next-token
// distributions are apart. C++ only; everything throws std::runtime_error with a sentence for
// people.
#ifndef SKVQ_LLAMA_TOOLS_HPP
#define SKVQ_LLAMA_TOOLS_HPP

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <llama.h>

#include <skvq/llama_client.h>

namespace skvq
{

// A command line that makes no sense: exit status 2.
struct UsageError : std::runtime_error {
	using std::runtime_error::runtime_error;
};

// The value of option name as a whole number of min..max, or UsageError.
uint32_t whole(const char *name, const char *text, uint32_t min, uint32_t max);

// Silences llama.cpp (errors too: ours name the cause) or lets it speak on stderr. Once, first.
void llama_setup(bool verbose);

double seconds_now(); // monotonic

// All bytes of a file; what ("prompt file") names it if it cannot be read.
std::string read_file(const std::string &path, const char *what);

class Model
{
      public:
	// for_client: refuse what skvq_llama cannot run. vocab_only: no weights; n_ctx_train and
	// kv_bytes_per_token_fp16 say nothing then.
	Model(const std::string &path, bool for_client, bool vocab_only = false);

	llama_model *get() const
	{
		return model_.get();
	}
	const std::string &path() const
	{
		return path_;
	}
	const llama_vocab *vocab() const
	{
		return llama_model_get_vocab(get());
	}
	uint32_t n_vocab() const
	{
		return static_cast<uint32_t>(llama_vocab_n_tokens(vocab()));
	}
	uint32_t n_ctx_train() const;
	uint64_t kv_bytes_per_token_fp16() const;
	// A GGUF metadata value as text; empty: not there.
	std::string metadata(const std::string &key) const;

	// special: the text may contain the model's control tokens, as a chat template does.
	std::vector<int32_t> tokenize(const std::string &text, bool special) const;
	std::string piece(int32_t token) const;
	// The text as one message of a user, in the model's chat template.
	std::string chat(const std::string &text) const;

      private:
	struct Deleter {
		void operator()(llama_model *model) const
		{
			llama_model_free(model);
		}
	};
	std::string path_;
	std::unique_ptr<llama_model, Deleter> model_;
};

// One sequence of tokens and what comes next.
class Engine
{
      public:
	virtual ~Engine() = default;
	// Starts over. Returns how many of the tokens need not be computed.
	virtual uint32_t begin(const std::vector<int32_t> &prompt) = 0;
	// The next tokens, at most ubatch(); logits of the last row or of all.
	virtual void decode(const int32_t *tokens, uint32_t n_tokens, bool all_logits) = 0;
	// The next tokens, any number; logits of the last row.
	virtual void prefill(const int32_t *tokens, uint32_t n_tokens) = 0;
	virtual llama_context *context() = 0;
	virtual uint32_t position() const = 0;
	virtual uint32_t ubatch() const = 0;
	// True when nothing is outstanding.
	virtual bool poll()
	{
		return true;
	}
	// Of a row of the last decode, -1 the last; valid until the next.
	const float *logits(int32_t row)
	{
		return llama_get_logits_ith(context(), row);
	}
};

struct PlainOptions {
	uint32_t n_ctx = 0;
	uint32_t n_ubatch = 512;
	uint32_t n_threads = 1;
	llama_flash_attn_type flash_attn = LLAMA_FLASH_ATTN_TYPE_AUTO;
	ggml_type type_kv = GGML_TYPE_F16;
};

// Stock llama.cpp, no skvq in it.
class Plain : public Engine
{
      public:
	Plain(const Model &model, const PlainOptions &options);
	uint32_t begin(const std::vector<int32_t> &prompt) override;
	void decode(const int32_t *tokens, uint32_t n_tokens, bool all_logits) override;
	void prefill(const int32_t *tokens, uint32_t n_tokens) override;
	llama_context *context() override
	{
		return context_.get();
	}
	uint32_t position() const override
	{
		return position_;
	}
	uint32_t ubatch() const override
	{
		return llama_n_ubatch(context_.get());
	}

	// Forgets the tokens from position n on.
	void truncate(uint32_t n);

      private:
	struct Deleter {
		void operator()(llama_context *ctx) const
		{
			llama_free(ctx);
		}
	};
	std::unique_ptr<llama_context, Deleter> context_;
	uint32_t position_ = 0;
};

// llama.cpp with its K/V in skvqd.
class Client : public Engine
{
      public:
	Client(const Model &model, const skvq_llama_options &options);
	uint32_t begin(const std::vector<int32_t> &prompt) override;
	void decode(const int32_t *tokens, uint32_t n_tokens, bool all_logits) override;
	void prefill(const int32_t *tokens, uint32_t n_tokens) override;
	llama_context *context() override
	{
		return skvq_llama_context(get());
	}
	uint32_t position() const override
	{
		return skvq_llama_position(get());
	}
	uint32_t ubatch() const override
	{
		return skvq_llama_ubatch(get());
	}
	bool poll() override;

	skvq_llama_usage usage() const;
	skvq_llama *get() const
	{
		return client_.get();
	}

      private:
	int32_t check(int32_t rc) const;
	struct Deleter {
		void operator()(skvq_llama *client) const
		{
			skvq_llama_close(client);
		}
	};
	std::unique_ptr<skvq_llama, Deleter> client_;
};

// Next-token distributions given as logits. Sums are kept in double.
double log_sum_exp(const float *logits, uint32_t n);
uint32_t top_token(const float *logits, uint32_t n); // the first of equals

// KL(reference || other) in nats.
double kl_divergence(const float *reference, const float *other, uint32_t n);

// A reference that several others are held against: what depends on it alone is computed once.
class Distribution
{
      public:
	struct Compared {
		double kl = 0;          // KL(this || other) in nats
		double log_sum_exp = 0; // of the other's logits
		bool same_top = false;
	};

	// logits is borrowed and must outlive the comparisons.
	Distribution(const float *logits, uint32_t n);
	Compared compare(const float *other) const;
	double log_sum_exp() const
	{
		return log_sum_exp_;
	}

      private:
	const float *logits_;
	double log_sum_exp_;
	uint32_t top_;
	std::vector<float> probability_;
};

// Mean, maximum, quantiles and agreement over positions.
class Divergence
{
      public:
	void add(const float *reference, const float *other, uint32_t n);
	void add(const Distribution::Compared &compared);
	bool empty() const
	{
		return klds_.empty();
	}
	size_t count() const
	{
		return klds_.size();
	}
	double mean() const;
	double max() const;
	double quantile(double q) const; // 0 <= q <= 1, nearest rank
	double top1_same() const;

      private:
	std::vector<double> klds_;
	size_t n_same_ = 0;
};

} // namespace skvq

#endif
