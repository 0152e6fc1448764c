// SPDX-License-Identifier: Apache-2.0
//
// skvq-llama: one prompt through llama.cpp, its K/V cache in skvqd.
#include <cstdio>
#include <exception>

#include "args.h"
#include "report.h"
#include "run.h"

namespace
{

constexpr int exit_failed = 1;
constexpr int exit_usage = 2;

} // namespace

int main(int argc, char **argv)
{
	try {
		const Args args = args_parse(argc, argv);
		if (args.help) {
			std::fputs(args_usage, stdout);
			return 0;
		}
		if (args.version) {
			std::printf("skvq-llama, llama.cpp %s\n", llama_version());
			return 0;
		}
		if (args.ids) {
			print_ids(args);
			return 0;
		}
		const bool quiet = args.json == "-";
		const Result result = run(args, quiet);
		if (!quiet) {
			std::putchar('\n');
			std::fflush(stdout);
		}
		report_text(result);
		if (!args.json.empty())
			report_json(result, args.json);
		return 0;
	} catch (const UsageError &e) {
		std::fprintf(stderr, "skvq-llama: %s; see --help\n", e.what());
		return exit_usage;
	} catch (const std::exception &e) {
		std::fprintf(stderr, "skvq-llama: %s\n", e.what());
		return exit_failed;
	}
}
