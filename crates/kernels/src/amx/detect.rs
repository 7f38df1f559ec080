//! Whether this process may use AMX: the processor, the system and its permission.

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

/// Whether tile instructions, their int8 and their bf16 products may be executed; asks once.
///
/// In the tests of this crate an emulator stands in for a processor without them.
pub(crate) fn is_usable() -> bool {
    static USABLE: OnceLock<bool> = OnceLock::new();
    *USABLE.get_or_init(|| {
        let has_all = processor_has_tiles() && system_keeps_tiles() && request_permission();
        #[cfg(all(test, target_os = "linux"))]
        let has_all = has_all || super::emulator::install();
        has_all
    })
}

/// AMX-TILE, AMX-INT8 and AMX-BF16.
fn processor_has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    const WANTED: u32 = BF16 | TILE | INT8;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & WANTED == WANTED
}

/// Whether the system saves and restores tiles and their configuration.
fn system_keeps_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const TILES: u64 = 0b11 << 17;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    // SAFETY: OSXSAVE says that the instruction is enabled; register 0 always exists.
    unsafe { _xgetbv(0) & TILES == TILES }
}

/// Linux gives tiles to processes that ask for them, for all their threads.
#[cfg(target_os = "linux")]
fn request_permission() -> bool {
    const ARCH_PRCTL: u64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XFEATURE_XTILEDATA: u64 = 18;
    let result: u64;
    // SAFETY: the system call of that number takes these two numbers, changes nothing but what the process may
    // execute, and overwrites the three registers named.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// How other systems give them is not known here.
#[cfg(not(target_os = "linux"))]
fn request_permission() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_agrees_with_what_it_lists() {
        let Ok(listed) = std::fs::read_to_string("/proc/cpuinfo") else {
            println!("SKIP: this system lists no features");
            return;
        };
        let has = |name| listed.split_whitespace().any(|word| word == name);
        let listed = has("amx_tile") && has("amx_int8") && has("amx_bf16");
        assert_eq!(processor_has_tiles() && system_keeps_tiles(), listed);
    }
}
