//! The conformance table on every instruction set that this processor has, and on several thread counts.

use ocelli_backend_cpu::{CpuBackend, CpuOptions, Error};

#[test]
fn every_instruction_set_and_thread_count_conforms() {
    let of_x86 = ["avx2", "avx2-vnni", "avx512", "avx512-vnni", "avx512-bf16", "amx"];
    let of_arm = ["neon", "neon-dotprod", "neon-i8mm", "neon-bf16"];
    for isa in ["scalar"].into_iter().chain(of_x86).chain(of_arm) {
        for threads in [1, 2, 3] {
            match CpuBackend::new(CpuOptions { threads: Some(threads), isa: Some(isa.into()), ..CpuOptions::default() })
            {
                Ok(backend) => ocelli_testkit::conformance(&backend),
                Err(Error::Isa(error)) => println!("SKIP: {error}"),
                Err(error) => panic!("{error}"),
            }
        }
    }
}
