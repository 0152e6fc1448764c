// SPDX-License-Identifier: Apache-2.0
//
// skvq/json_object.hpp - one flat JSON object, as commands print it with --json.
#ifndef SKVQ_JSON_OBJECT_HPP
#define SKVQ_JSON_OBJECT_HPP

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

struct json_t; // jansson's

namespace skvq
{

// Keys in the order of their coming. Everything throws std::runtime_error where memory or the file
// fails.
class JsonObject
{
      public:
	JsonObject();
	// Bytes that are no UTF-8 (a token may end inside a character) become U+FFFD.
	void text(const char *key, const std::string &value);
	void whole(const char *key, uint64_t value);
	void real(const char *key, double value);
	void flag(const char *key, bool value);
	void list(const char *key, const std::vector<int32_t> &values);
	void list(const char *key, const std::vector<uint32_t> &values);
	void list(const char *key, const std::vector<double> &values);
	// On several lines; name is for the error.
	void write(FILE *file, const std::string &name) const;
	// On one, to stdout.
	void print_line() const;

      private:
	void set(const char *key, json_t *value);
	void dump(FILE *file, const std::string &name, size_t flags) const;

	struct Deleter {
		void operator()(json_t *json) const;
	};
	std::unique_ptr<json_t, Deleter> object_;
};

} // namespace skvq

#endif
