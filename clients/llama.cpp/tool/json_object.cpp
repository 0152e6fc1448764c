// SPDX-License-Identifier: Apache-2.0
#include <skvq/json_object.hpp>

#include <cerrno>
#include <cstring>
#include <stdexcept>

#include <jansson.h>

namespace skvq
{

namespace
{

// Length of the well-formed UTF-8 sequence at text[i], 0 if there is none.
size_t utf8_length(const std::string &text, size_t i)
{
	const auto at = [&](size_t k) {
		return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u;
	};
	const auto tail = [&](size_t k) { return (at(k) & 0xc0u) == 0x80u; };
	const unsigned lead = at(i), next = at(i + 1);
	if (lead < 0x80)
		return 1;
	if (lead >= 0xc2 && lead <= 0xdf)
		return tail(i + 1) ? 2 : 0;
	if (lead >= 0xe0 && lead <= 0xef) {
		const bool bad = (lead == 0xe0 && next < 0xa0) || (lead == 0xed && next > 0x9f);
		return !bad && tail(i + 1) && tail(i + 2) ? 3 : 0;
	}
	if (lead >= 0xf0 && lead <= 0xf4) {
		const bool bad = (lead == 0xf0 && next < 0x90) || (lead == 0xf4 && next > 0x8f);
		return !bad && tail(i + 1) && tail(i + 2) && tail(i + 3) ? 4 : 0;
	}
	return 0;
}

// Stray bytes become U+FFFD.
std::string utf8(const std::string &text)
{
	std::string clean;
	for (size_t i = 0; i < text.size();) {
		const size_t n = utf8_length(text, i);
		if (n)
			clean.append(text, i, n);
		else
			clean += "\xef\xbf\xbd";
		i += n ? n : 1;
	}
	return clean;
}

template <class T, class Make>
json_t *array_of(const std::vector<T> &values, Make make)
{
	json_t *array = json_array();
	for (const T value : values)
		if (json_array_append_new(array, make(value)) != 0)
			throw std::runtime_error("out of memory while writing JSON");
	return array;
}

} // namespace

JsonObject::JsonObject() : object_(json_object()) {}

void JsonObject::Deleter::operator()(json_t *json) const
{
	json_decref(json);
}

void JsonObject::text(const char *key, const std::string &value)
{
	const std::string clean = utf8(value);
	set(key, json_stringn(clean.data(), clean.size()));
}

void JsonObject::whole(const char *key, uint64_t value)
{
	set(key, json_integer(static_cast<json_int_t>(value)));
}

void JsonObject::real(const char *key, double value)
{
	set(key, json_real(value));
}

void JsonObject::flag(const char *key, bool value)
{
	set(key, json_boolean(value));
}

void JsonObject::list(const char *key, const std::vector<int32_t> &values)
{
	set(key, array_of(values, [](int32_t value) { return json_integer(value); }));
}

void JsonObject::list(const char *key, const std::vector<uint32_t> &values)
{
	set(key, array_of(values, [](uint32_t value) { return json_integer(value); }));
}

void JsonObject::list(const char *key, const std::vector<double> &values)
{
	set(key, array_of(values, [](double value) { return json_real(value); }));
}

void JsonObject::set(const char *key, json_t *value)
{
	if (json_object_set_new(object_.get(), key, value) != 0)
		throw std::runtime_error(std::string("cannot write '") + key + "' as JSON");
}

void JsonObject::dump(FILE *file, const std::string &name, size_t flags) const
{
	if (json_dumpf(object_.get(), file, flags) != 0 || std::fputc('\n', file) == EOF ||
	    std::fflush(file) != 0)
		throw std::runtime_error("cannot write '" + name + "': " + std::strerror(errno));
}

void JsonObject::write(FILE *file, const std::string &name) const
{
	dump(file, name, JSON_INDENT(2));
}

void JsonObject::print_line() const
{
	dump(stdout, "stdout", JSON_COMPACT | JSON_REAL_PRECISION(9));
}

} // namespace skvq
