/* SPDX-License-Identifier: Apache-2.0 */
#include <skvq/client.h>

#define NAME(code)                                                                                 \
	case code:                                                                                 \
		return #code

const char *skvq_err_name(int err)
{
	switch (err < 0 ? -(unsigned)err : (unsigned)err) {
	case 0:
		return "SKVQ_OK";
		NAME(SKVQ_EINVAL);
		NAME(SKVQ_ENOTSUP);
		NAME(SKVQ_ESTATE);
		NAME(SKVQ_EGEOMETRY);
		NAME(SKVQ_EPROFILE);
		NAME(SKVQ_EIDENTITY);
		NAME(SKVQ_ERANGE);
		NAME(SKVQ_EMISALIGNED);
		NAME(SKVQ_ESTALE);
		NAME(SKVQ_EFORKED);
		NAME(SKVQ_EPATH);
		NAME(SKVQ_EIO);
		NAME(SKVQ_ENOMEM);
		NAME(SKVQ_ENODAEMON);
		NAME(SKVQ_EPROTO);
		NAME(SKVQ_EVERSION);
		NAME(SKVQ_ECORRUPT);
		NAME(SKVQ_EFD);
		NAME(SKVQ_ESEALS);
		NAME(SKVQ_ESHORT);
		NAME(SKVQ_EINUSE);
		NAME(SKVQ_EPERM);
		NAME(SKVQ_ESYS);
		NAME(SKVQ_EAGAIN);
		NAME(SKVQ_ETIMEOUT);
		NAME(SKVQ_ENOSPC);
		NAME(SKVQ_EPINS);
		NAME(SKVQ_ECONNS);
		NAME(SKVQ_EFRAME);
		NAME(SKVQ_EBUSY);
		NAME(SKVQ_ELIMIT);
		NAME(SKVQ_EFULL);
		NAME(SKVQ_ETCONNS);
		NAME(SKVQ_ETPINS);
		NAME(SKVQ_ETRAM);
		NAME(SKVQ_ENAMESPACES);
		NAME(SKVQ_ESTAGINGS);
		NAME(SKVQ_EQUEUE);
	default:
		return "unknown";
	}
}
