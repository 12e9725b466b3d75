//! `/dev/kvm` and the VM behind it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_X86_DISABLE_EXITS, KVM_PIT_SPEAKER_DUMMY, KVM_X86_DISABLE_EXITS_HLT,
    KVM_X86_DISABLE_EXITS_PAUSE, kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO,
    kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use thiserror::Error;

use crate::memory::GuestLayout;
use crate::vcpu;

/// Why there is no VM.
#[derive(Debug, Error)]
pub enum KvmError {
    /// No such device file.
    #[error(
        "this host has no /dev/kvm: load the module (modprobe kvm_amd or kvm_intel) and see that virtualization is on in the firmware"
    )]
    Absent,
    /// No permission.
    #[error(
        "no permission to use /dev/kvm: join its group (usermod -aG kvm $USER, then log in again)"
    )]
    Permission,
    /// It can't be opened otherwise.
    #[error("cannot open /dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
    /// Something that airlock needs is missing.
    #[error("the host's KVM lacks {0}; a newer kernel has it")]
    Lacks(&'static str),
    /// CPUs can't halt inside the guest.
    #[error("this host's KVM can't let CPUs halt inside the guest; leave out --cpu idle=guest")]
    NoIdleGuest,
    /// KVM refused.
    #[error("KVM cannot {0}")]
    Refused(&'static str, #[source] kvm_ioctls::Error),
    /// No descriptor was left.
    #[error("cannot keep KVM's VFIO device open")]
    VfioDevice(#[source] io::Error),
}

/// A VM with its interrupt controllers and timer, all in the kernel.
#[derive(Debug)]
pub struct Hypervisor {
    vm: Arc<VmFd>,
    cpuid: CpuId,
}

impl Hypervisor {
    /// Makes an empty VM.
    ///
    /// # Errors
    /// [`KvmError`] naming what the host lacks or refuses.
    pub fn new() -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENXIO | libc::ENODEV => KvmError::Absent,
            libc::EACCES | libc::EPERM => KvmError::Permission,
            _ => KvmError::Open(error),
        })?;
        let needed = [
            (Cap::Irqchip, "in-kernel interrupt controllers"),
            (Cap::Pit2, "the in-kernel timer"),
            (Cap::IrqRouting, "interrupt routing"),
            (Cap::Irqfd, "irqfd"),
            (Cap::UserMemory, "user memory"),
            (Cap::ImmediateExit, "immediate exit"),
            (Cap::SetTssAddr, "a movable TSS"),
        ];
        for (capability, name) in needed {
            if !kvm.check_extension(capability) {
                return Err(KvmError::Lacks(name));
            }
        }
        let refused = |what| move |error| KvmError::Refused(what, error);
        let cpuid = vcpu::supported(&kvm).map_err(refused("say what CPU it supports"))?;
        let vm = kvm.create_vm().map_err(refused("make a VM"))?;
        vm.set_identity_map_address(GuestLayout::KVM_IDENTITY_MAP)
            .map_err(refused("place its identity map"))?;
        vm.set_tss_address(GuestLayout::KVM_TSS as usize)
            .map_err(refused("place its TSS"))?;
        vm.create_irq_chip()
            .map_err(refused("make the interrupt controllers"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(pit).map_err(refused("make the timer"))?;
        Ok(Self {
            vm: Arc::new(vm),
            cpuid,
        })
    }

    /// The VM.
    pub fn vm(&self) -> &Arc<VmFd> {
        &self.vm
    }

    /// How many physical address bits the guest's CPU has.
    pub fn address_bits(&self) -> u8 {
        vcpu::address_bits(&self.cpuid)
    }

    /// Lets the guest's CPUs halt, and wait in a spinlock, without leaving the
    /// guest. For host CPUs that nothing else uses; before vCPUs are made.
    ///
    /// # Errors
    /// [`KvmError::NoIdleGuest`] where KVM can't, for example to work around a
    /// bug of the CPU.
    pub fn idle_in_guest(&self) -> Result<(), KvmError> {
        let offered = self
            .vm
            .check_extension_raw(KVM_CAP_X86_DISABLE_EXITS.into());
        let offered = u32::try_from(offered).unwrap_or(0);
        if offered & KVM_X86_DISABLE_EXITS_HLT == 0 {
            return Err(KvmError::NoIdleGuest);
        }
        // Not MWAIT: the guest is not told of it, since its deeper sleep makes
        // waking up slower than leaving the guest would.
        let wanted = offered & (KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE);
        let mut request = kvm_enable_cap {
            cap: KVM_CAP_X86_DISABLE_EXITS,
            ..Default::default()
        };
        request.args[0] = wanted.into();
        self.vm
            .enable_cap(&request)
            .map_err(|error| KvmError::Refused("let CPUs halt inside the guest", error))
    }

    /// Makes `count` vCPUs; none runs yet.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn vcpus(&self, count: u8) -> Result<Vec<VcpuFd>, KvmError> {
        (0..count)
            .map(|id| {
                let mut vcpu = self
                    .vm
                    .create_vcpu(id.into())
                    .map_err(|error| KvmError::Refused("make a vCPU", error))?;
                vcpu::keep_from_children(&mut vcpu, self.vm.run_size()).map_err(|error| {
                    KvmError::Refused("keep a vCPU out of child processes", error)
                })?;
                let cpuid = vcpu::guest_cpuid(&self.cpuid, &self.vm, id, count);
                vcpu.set_cpuid2(&cpuid)
                    .map_err(|error| KvmError::Refused("set a vCPU's CPUID", error))?;
                Ok(vcpu)
            })
            .collect()
    }

    /// KVM's side of assigned devices: told of each group, KVM lets guests
    /// with devices that bypass the caches control them (WBINVD).
    ///
    /// # Errors
    /// [`KvmError`] when KVM has none to give.
    pub fn vfio_device(&self) -> Result<OwnedFd, KvmError> {
        let mut request = kvm_create_device {
            type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
            fd: 0,
            flags: 0,
        };
        let device = self
            .vm
            .create_device(&mut request)
            .map_err(|error| KvmError::Refused("make its VFIO device", error))?;
        crate::sys::own(&device).map_err(KvmError::VfioDevice)
    }
}
