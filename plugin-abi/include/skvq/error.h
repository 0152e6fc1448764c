/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvq/error.h - the error codes of everything skvqd: plugin ABI, wire protocol, tools.
 *
 * Every function returns 0 (or a count) on success and one of these, negated, on failure. The
 * numbers are pinned: a code is never renumbered and never reused. Codes say whose fault it was:
 * 1-31 the caller's, 32-63 the system's or a peer's, 64-79 "try again", 80-95 a bound was hit.
 */
#ifndef SKVQ_ERROR_H
#define SKVQ_ERROR_H

/* The caller's. */
#define SKVQ_EINVAL 1      /* an argument, flag or reserved field is wrong                   */
#define SKVQ_ENOTSUP 2     /* declared, but this build does not implement it                 */
#define SKVQ_ESTATE 3      /* right call, wrong moment (order of append/commit, closed, ...) */
#define SKVQ_EGEOMETRY 4   /* layers, heads or head_dim do not fit the model or the limits   */
#define SKVQ_EPROFILE 5    /* no such codec profile                                          */
#define SKVQ_EIDENTITY 6   /* the identity is partial or contradicts itself                  */
#define SKVQ_ERANGE 7      /* a token position or range lies outside the sequence            */
#define SKVQ_EMISALIGNED 8 /* a pointer or stride is not aligned to its element type         */
#define SKVQ_ESTALE 9      /* a handle whose generation has passed                           */
#define SKVQ_EFORKED 10    /* the session belongs to the parent process                      */
#define SKVQ_EPATH 11      /* a socket path is too long, or not a socket                     */

/* The system's or a peer's. */
#define SKVQ_EIO 32       /* a read or write failed                                         */
#define SKVQ_ENOMEM 33    /* memory could not be had                                        */
#define SKVQ_ENODAEMON 34 /* nobody answers on the socket                                   */
#define SKVQ_EPROTO 35    /* the peer broke the protocol: frame, field or fd count          */
#define SKVQ_EVERSION 36  /* the peer speaks another major version                          */
#define SKVQ_ECORRUPT 37  /* a checksum or a page header does not hold                      */
#define SKVQ_EFD 38       /* the wrong kind of file descriptor                              */
#define SKVQ_ESEALS 39    /* a memfd lacks the seals that are required                      */
#define SKVQ_ESHORT 40    /* a memfd or a page is shorter than it was said to be            */
#define SKVQ_EINUSE 41    /* the socket is in use by a running daemon                       */
#define SKVQ_EPERM 42     /* not allowed to this user or tenant                             */
#define SKVQ_ESYS 43      /* another system call failed; the detail names it                */

/* Try again. */
#define SKVQ_EAGAIN 64   /* not yet                                                        */
#define SKVQ_ETIMEOUT 65 /* the deadline passed; the answer counts as a miss               */

/* A bound was hit. */
#define SKVQ_ENOSPC 80   /* no page can be freed under the RAM cap                         */
#define SKVQ_EPINS 81    /* this connection holds as many pins as it may                   */
#define SKVQ_ECONNS 82   /* the daemon holds as many connections as it may                 */
#define SKVQ_EFRAME 83   /* a frame is larger than the bound                               */
#define SKVQ_EBUSY 84    /* this connection has as many requests in flight as it may       */
#define SKVQ_ELIMIT 85   /* another limit; the detail names it                             */
#define SKVQ_EFULL 86    /* the sequence is at its max_tokens                              */
#define SKVQ_ETCONNS 87  /* the tenant holds as many connections as it may                 */
#define SKVQ_ETPINS 88   /* the tenant's connections hold as many pins as they may         */
#define SKVQ_ETRAM 89    /* no room in the tenant's share of memory                        */
#define SKVQ_ENAMESPACES 90 /* as many namespaces are open as may be                       */
#define SKVQ_ESTAGINGS 91 /* this connection has as many staging memfds as it may          */
#define SKVQ_EQUEUE 92   /* as many pages wait to be copied as may                         */

#endif /* SKVQ_ERROR_H */
