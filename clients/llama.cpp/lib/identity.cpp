// SPDX-License-Identifier: Apache-2.0
#include "identity.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <set>
#include <vector>

#include <dlfcn.h>
#include <ggml-cpu.h>
#include <openssl/evp.h>

#include "error.h"

namespace skvq
{

namespace
{

class Sha256
{
      public:
	Sha256() : ctx_(EVP_MD_CTX_new())
	{
		if (!ctx_ || EVP_DigestInit_ex(ctx_.get(), EVP_sha256(), nullptr) != 1)
			throw Error(SKVQ_ESYS, "libcrypto does not provide SHA-256");
	}

	void bytes(const void *data, size_t size)
	{
		if (EVP_DigestUpdate(ctx_.get(), data, size) != 1)
			throw Error(SKVQ_ESYS, "libcrypto failed while hashing");
	}

	// Texts and numbers are framed, so that no two lists of them hash alike.
	void number(uint64_t value)
	{
		bytes(&value, sizeof value);
	}
	void text(const char *text)
	{
		const size_t size = text ? std::strlen(text) : 0;
		number(size);
		bytes(text, size);
	}

	Digest finish()
	{
		Digest digest;
		unsigned size = 0;
		if (EVP_DigestFinal_ex(ctx_.get(), digest.data(), &size) != 1 ||
		    size != digest.size())
			throw Error(SKVQ_ESYS, "libcrypto failed while hashing");
		return digest;
	}

      private:
	struct Deleter {
		void operator()(EVP_MD_CTX *ctx) const
		{
			EVP_MD_CTX_free(ctx);
		}
	};
	std::unique_ptr<EVP_MD_CTX, Deleter> ctx_;
};

std::string hex(const Digest &digest, size_t n_bytes)
{
	std::string text;
	for (size_t i = 0; i < n_bytes; ++i) {
		char two[3];
		std::snprintf(two, sizeof two, "%02x", digest[i]);
		text += two;
	}
	return text;
}

// The file a function was loaded from.
std::string object_of(const void *function)
{
	Dl_info info;
	if (!dladdr(function, &info) || !info.dli_fname)
		throw Error(SKVQ_ESYS, "cannot tell which file llama.cpp was loaded from");
	return info.dli_fname;
}

template <typename F> const void *address(F *function)
{
	return reinterpret_cast<const void *>(function);
}

} // namespace

std::string digest_hex(const Digest &digest)
{
	return hex(digest, digest.size());
}

Digest digest_file(const std::string &path)
{
	std::unique_ptr<FILE, int (*)(FILE *)> file(std::fopen(path.c_str(), "rb"), std::fclose);
	if (!file)
		throw Error(SKVQ_EIO, "cannot open '" + path + "': " + std::strerror(errno));
	Sha256 hash;
	std::vector<char> buf(size_t{1} << 20);
	size_t n;
	while ((n = std::fread(buf.data(), 1, buf.size(), file.get())) > 0)
		hash.bytes(buf.data(), n);
	if (std::ferror(file.get()))
		throw Error(SKVQ_EIO, "cannot read '" + path + "': " + std::strerror(errno));
	return hash.finish();
}

Digest digest_vocab(const llama_vocab *vocab)
{
	Sha256 hash;
	const int32_t n = llama_vocab_n_tokens(vocab);
	hash.text("skvq vocab 1");
	hash.number(static_cast<uint64_t>(llama_vocab_type(vocab)));
	hash.number(static_cast<uint64_t>(n));
	for (llama_token token = 0; token < n; ++token) {
		const float score = llama_vocab_get_score(vocab, token);
		hash.text(llama_vocab_get_text(vocab, token));
		hash.bytes(&score, sizeof score);
		hash.number(static_cast<uint64_t>(llama_vocab_get_attr(vocab, token)));
	}
	const llama_token special[] = {
	    llama_vocab_bos(vocab),     llama_vocab_eos(vocab),     llama_vocab_eot(vocab),
	    llama_vocab_sep(vocab),     llama_vocab_nl(vocab),      llama_vocab_pad(vocab),
	    llama_vocab_mask(vocab),    llama_vocab_fim_pre(vocab), llama_vocab_fim_suf(vocab),
	    llama_vocab_fim_mid(vocab), llama_vocab_fim_pad(vocab), llama_vocab_fim_rep(vocab),
	    llama_vocab_fim_sep(vocab),
	};
	for (const llama_token token : special)
		hash.number(static_cast<uint64_t>(static_cast<int64_t>(token)));
	hash.number(llama_vocab_get_add_bos(vocab));
	hash.number(llama_vocab_get_add_eos(vocab));
	hash.number(llama_vocab_get_add_sep(vocab));
	return hash.finish();
}

std::string numerics_tag(uint32_t n_ubatch)
{
	// The version text of a development build does not change with its code; the code does.
	const std::set<std::string> objects = {
	    object_of(address(llama_decode)),
	    object_of(address(ggml_graph_compute)),
	    object_of(address(ggml_new_tensor)),
	};
	Sha256 libraries;
	for (const std::string &object : objects) {
		const Digest digest = digest_file(object);
		libraries.bytes(digest.data(), digest.size());
	}
	Sha256 system;
	system.text(llama_print_system_info());
	return std::string("llama.cpp-") + llama_version() + "/lib-" + hex(libraries.finish(), 6) +
	       "/cpu-" + hex(system.finish(), 4) + "/ub" + std::to_string(n_ubatch) + "/fa";
}

} // namespace skvq
