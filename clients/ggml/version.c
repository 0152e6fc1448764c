/* SPDX-License-Identifier: Apache-2.0 */
/* Run when configuring: which ggml this is. */
#include <stdio.h>

#include <ggml.h>

int main(void)
{
	printf("%s;%s", ggml_version(), ggml_commit());
	return 0;
}
