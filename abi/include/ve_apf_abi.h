/* SPDX-License-Identifier: GPL-2.0-only OR MIT */
/* ABI v1 (draft) of ve-apf. Generated from the crate ve-apf-abi; do not edit. */

#ifndef _LINUX_VE_APF_ABI_H
#define _LINUX_VE_APF_ABI_H

#ifdef __KERNEL__
#include <linux/types.h>
#else
#include <stdint.h>
#endif

#define VE_APF_ALIGNED(bytes) __attribute__((aligned(bytes)))

/*
 * MSR_KVM_ASYNC_PF_EN. Guest and host-initiated writes; saved by VMMs.
 */
#define VE_APF_MSR_EN 0x4b564d02

/*
 * MSR_KVM_ASYNC_PF_INT: bits 7:0 hold the completion vector (32 to 255), the rest is zero.
 *
 * A guest writes it before EN; a VMM that restores a VM may write it after.
 */
#define VE_APF_MSR_INT 0x4b564d06

/*
 * Read only: VE_APF_CAPS_SIGNATURE in bits 63:32, Caps in bits 31:0.
 *
 * #GP (or 0, with KVM's ignore_msrs) on a host without ve-apf, and where this vCPU cannot use it.
 * A write is #GP.
 */
#define VE_APF_MSR_CAPS 0x4b564de0

/*
 * The VE info area of this vCPU: VE_APF_VEINFO_ENABLE and VE_APF_VEINFO_PAGE_MASK. 0 is off.
 *
 * Only where Caps::HARDWARE. A write is #GP, and changes nothing, if another bit is set, no ring
 * is enabled, or the page is not memory of the VM, or is the ring's. It may move while faults are
 * outstanding: those lie in the ring. Off, and only that, is written while the ring is off; writing
 * EN turns it off too.
 */
#define VE_APF_MSR_VEINFO 0x4b564de1

/*
 * VEINFO bit 0: EPT violations of declared memory raise #VE on this vCPU.
 */
#define VE_APF_VEINFO_ENABLE 1

/*
 * Bits 63:12 of VEINFO: guest-physical address of the VE info area.
 */
#define VE_APF_VEINFO_PAGE_MASK 0xfffffffffffff000ULL

/*
 * EN bit 0: enabled.
 */
#define VE_APF_EN_ENABLE 1

/*
 * EN bit 1: faults taken in kernel mode too.
 */
#define VE_APF_EN_KERNEL (1 << 1)

/*
 * EN bit 3: completions come as an interrupt. Always set.
 */
#define VE_APF_EN_INTERRUPT (1 << 3)

/*
 * EN bit 4: ve-apf rather than KVM's #PF protocol. KVM without ve-apf refuses it.
 */
#define VE_APF_EN_SELECT (1 << 4)

/*
 * Lowest bit of the ABI version in EN.
 */
#define VE_APF_EN_VERSION_SHIFT 8

/*
 * Bits 11:8 of EN: the ABI version.
 */
#define VE_APF_EN_VERSION_MASK 0xf00

/*
 * Bits 63:12 of EN: guest-physical address of the fault ring.
 */
#define VE_APF_EN_RING_MASK 0xfffffffffffff000ULL

/*
 * Bits of EN that are zero: 2, 5, 6 and 7.
 */
#define VE_APF_EN_RESERVED 0xe4

/*
 * This crate's ABI version.
 */
#define VE_APF_ABI_VERSION 1

/*
 * "VeAF": upper half of CAPS, since a host with ignore_msrs reads any unknown MSR as 0.
 */
#define VE_APF_CAPS_SIGNATURE 0x56654146

/*
 * Lowest completion vector; those below are exceptions.
 */
#define VE_APF_VECTOR_MIN 32

/*
 * Vector of #VE (SDM vol. 3, table 6-1; AMD leaves it undefined).
 */
#define VE_APF_VE_VECTOR 20

/*
 * CAPS bit 0: injected mode.
 */
#define VE_APF_CAPS_INJECTED 1

/*
 * CAPS bit 1: hardware mode.
 */
#define VE_APF_CAPS_HARDWARE (1 << 1)

/*
 * Number of the hypercall; upstream counts up from 1.
 */
#define VE_APF_HYPERCALL 0x5645

/*
 * SUBMIT(slot): look at the slot. Idempotent: may be repeated at any time.
 *
 * State CAN_CONTINUE: answers QUEUED, or at once RESOLVED or FAIL. State SUSPEND_ME: does not
 * return before the slot is RESOLVED or FAIL; signals, NMIs and a VM pause leave RIP on the
 * instruction, so the guest executes it again.
 */
#define VE_APF_OP_SUBMIT 1

/*
 * SUSPEND(gpa, qualification): no slot was free; returns when the page is there.
 */
#define VE_APF_OP_SUSPEND 2

/*
 * STATUS(slot, generation): does the host still work on it?
 */
#define VE_APF_OP_STATUS 3

/*
 * RANGE(gpa, length, flags): declares memory of the VM whose faults may raise #VE, or withdraws it.
 * Hardware mode only, from a vCPU whose VEINFO is on.
 *
 * Address and length are multiples of 4096 and neither 0 nor above 2^52 in sum. A declaration holds
 * for all vCPUs, until it is withdrawn, no vCPU has VEINFO enabled any more, or the memslot goes;
 * what lies outside of memslots is left out, and it is an error if nothing remains. Ranges may
 * overlap, and may be declared again. Returns 0; -7 (E2BIG) where the host has no room for one
 * more separate range, and then those that it had still hold.
 */
#define VE_APF_OP_RANGE 4

/*
 * RANGE, bit 0 of its flags: withdraw. The range may be larger than anything declared.
 */
#define VE_APF_RANGE_WITHDRAW 1

/*
 * The host works on it and will complete the slot.
 */
#define VE_APF_QUEUED 1

/*
 * The page is there; the slot, if any, says so too.
 */
#define VE_APF_RESOLVED 2

/*
 * The page can never come; the slot, if any, says so too.
 */
#define VE_APF_FAIL 3

/*
 * The host knows nothing of that use of the slot: refault, and enable again.
 */
#define VE_APF_UNKNOWN 4

/*
 * KVM_ENOSYS of include/uapi/linux/kvm_para.h, returned negated.
 */
#define VE_APF_ENOSYS 1000

/*
 * KVM_EINVAL, returned negated.
 */
#define VE_APF_EINVAL 22

/*
 * KVM_E2BIG, returned negated.
 */
#define VE_APF_E2BIG 7

/*
 * Slot not in use.
 */
#define VE_APF_STATE_NONE 0

/*
 * The task is parked, or about to be; the vCPU runs on.
 */
#define VE_APF_STATE_CAN_CONTINUE 1

/*
 * The vCPU must stop until the page is there.
 */
#define VE_APF_STATE_SUSPEND_ME 2

/*
 * The page is there, or may be: retry.
 */
#define VE_APF_STATE_RESOLVED 3

/*
 * The page can never come; Slot::cause says why.
 */
#define VE_APF_STATE_FAIL 4

/*
 * Generations count modulo this.
 */
#define VE_APF_GENERATIONS (1 << 24)

/*
 * Slots in a ring; also the number of bits in use in its bitmaps (62 and 63 are zero).
 */
#define VE_APF_SLOTS 62

/*
 * All valid bits of the bitmaps.
 */
#define VE_APF_SLOT_MASK 0x3fffffffffffffffULL

/*
 * Size and alignment of a ring, in bytes.
 */
#define VE_APF_RING_SIZE 0x1000

/*
 * host_flags bit 0: the host polls submitted; no doorbell is needed.
 */
#define VE_APF_HOST_POLLING 1

/*
 * Slot::flags bit 0: the CPU delivered it (hardware mode); else the host injected it.
 */
#define VE_APF_SLOT_HARDWARE 1

/*
 * Slot::flags bit 1: Slot::gla is valid. AMD's nested page fault reports none.
 */
#define VE_APF_SLOT_GLA_VALID (1 << 1)

/*
 * No failure.
 */
#define VE_APF_CAUSE_NONE 0

/*
 * The host's memory is gone: truncated file, dead pager, no mapping.
 */
#define VE_APF_CAUSE_GONE 1

/*
 * The page is poisoned: the machine, or the VMM, says that its content is lost.
 */
#define VE_APF_CAUSE_POISON 2

/*
 * The page did not come before the VM's deadline.
 */
#define VE_APF_CAUSE_DEADLINE 3

/*
 * Access bits of Slot::qualification, SDM vol. 3, table 28-7.
 */
#define VE_APF_QUAL_READ 1

/*
 * The access was a data write.
 */
#define VE_APF_QUAL_WRITE (1 << 1)

/*
 * The access was an instruction fetch.
 */
#define VE_APF_QUAL_FETCH (1 << 2)

/*
 * What the CPU puts into VeInfo::busy: no further #VE until software writes 0.
 */
#define VE_APF_VE_BUSY 0xffffffffU

/*
 * VeInfo::reason of an EPT violation (SDM vol. 3, appendix C).
 */
#define VE_APF_REASON_EPT_VIOLATION 48

/*
 * Bit 7 of VeInfo::qualification: VeInfo::gla is valid (SDM vol. 3, table 28-7).
 */
#define VE_APF_QUAL_GLA_VALID (1 << 7)

/*
 * Number of the capability; upstream counts up from 1.
 */
#define VE_APF_VM_CAP 0x5645

/*
 * Bit 0 of the flags: memory that the host's hardware (or UFFDIO_POISON) has poisoned is failed
 * in the guest, with VE_APF_CAUSE_POISON. Without it KVM signals the VMM instead (SIGBUS,
 * BUS_MCEERR_AR), which may then, for one, raise a machine check in the guest.
 */
#define VE_APF_VM_FAIL_POISON 1

/*
 * Bit 30 of what KVM_CHECK_EXTENSION returns: the capability is there. Not a flag to set.
 */
#define VE_APF_VM_KNOWN (1 << 30)

/*
 * Longest deadline, in nanoseconds: one hour. 0, the default, is none.
 *
 * A fault that was told to the guest and is not resolved when so much time went by since it
 * happened fails with VE_APF_CAUSE_DEADLINE. What waits for the page on the host waits on: the
 * next touch joins it, with a deadline of its own.
 */
#define VE_APF_VM_DEADLINE_MAX_NS 0x34630b8a000ULL

/*
 * One fault. The first 34 bytes are laid out as the hardware's VE information.
 *
 * Writer of all fields but word and cause: whoever took the slot, before it sets word.
 * Reader: the other side, after it read word. Nobody changes them while the slot is in use.
 */
struct VE_APF_ALIGNED(64) ve_apf_slot {
	/*
	 * As VeInfo::reason; 48 in injected mode too.
	 */
	uint32_t reason;
	/*
	 * generation << 8 | state, see crate::word.
	 */
	uint32_t word;
	/*
	 * Exit qualification; bits 2:0 (read, write, fetch) are valid in injected mode too.
	 */
	uint64_t qualification;
	/*
	 * Guest-linear address, if VE_APF_SLOT_GLA_VALID.
	 */
	uint64_t gla;
	/*
	 * Guest-physical address.
	 */
	uint64_t gpa;
	/*
	 * EPTP index; 0 in injected mode.
	 */
	uint16_t eptp_index;
	/*
	 * VE_APF_SLOT_HARDWARE, VE_APF_SLOT_GLA_VALID.
	 */
	uint16_t flags;
	/*
	 * Why FAIL; written by the host before the word becomes FAIL, NONE otherwise.
	 */
	uint16_t cause;
	/*
	 * Zero.
	 */
	uint8_t reserved[26];
};

/*
 * The fault ring of one vCPU.
 */
struct VE_APF_ALIGNED(4096) ve_apf_ring {
	/*
	 * Bit per slot in use. Whoever takes a slot sets it, the guest clears it; both atomically.
	 */
	uint64_t active;
	/*
	 * Bit per slot the host should look at. Guest sets before it looks at host_flags; host clears.
	 */
	uint64_t submitted;
	/*
	 * Zero; the rest of the guest's cache line.
	 */
	uint8_t reserved_guest[48];
	/*
	 * Bit per finished slot: a hint, the slot's word decides. Host sets after the word; the guest
	 * exchanges it with 0 in the completion interrupt.
	 */
	uint64_t completed;
	/*
	 * 0, or slot + 1 of a fault the host is injecting. Host sets only when it reads 0; the
	 * guest clears it in its #VE handler, with interrupts off.
	 */
	uint32_t injected;
	/*
	 * VE_APF_HOST_POLLING. Host writes; the guest reads after a full fence.
	 */
	uint32_t host_flags;
	/*
	 * Grows when the host lost its soft state (restore); the guest then sets it up again.
	 */
	uint32_t epoch;
	/*
	 * Zero; the rest of the host's cache line.
	 */
	uint8_t reserved_host[44];
	/*
	 * The faults.
	 */
	struct ve_apf_slot slots[62];
};

/*
 * The virtualization-exception information area.
 *
 * Writer: the CPU, when it raises #VE. Reader: the guest. Cleared: the guest writes 0 to busy
 * after the hypercall that hands the fault to the host returned; until then violations exit.
 */
struct VE_APF_ALIGNED(4096) ve_apf_ve_info {
	/*
	 * Exit reason that would have been reported: VE_APF_REASON_EPT_VIOLATION.
	 */
	uint32_t reason;
	/*
	 * VE_APF_VE_BUSY from delivery until the guest clears it.
	 */
	uint32_t busy;
	/*
	 * Exit qualification (SDM vol. 3, table 28-7).
	 */
	uint64_t qualification;
	/*
	 * Guest-linear address, if the qualification says that it is valid.
	 */
	uint64_t gla;
	/*
	 * Guest-physical address.
	 */
	uint64_t gpa;
	/*
	 * EPTP index; some CPUs write 0.
	 */
	uint16_t eptp_index;
	/*
	 * Not written by the CPU.
	 */
	uint8_t reserved[4062];
};

#endif  /* _LINUX_VE_APF_ABI_H */
