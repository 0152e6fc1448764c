/* Each public header alone, as every language version an engine may be built in. */
#if HEADER == 1
#include <skvq/plugin.h>
#elif HEADER == 2
#include <skvq/format.h>
#else
#include <skvq/error.h>
#endif

int header_compiles(void);
int header_compiles(void)
{
	return SKVQ_TEST_USES;
}
