// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {IAdapterFactory} from "./IAdapterFactory.sol";

/// @title Digests that validators sign, and the counting of their votes
/// @dev Internal functions only, so they are part of AdapterFactory. The same bytes are computed by
///      citrate_node/protocol/certificate.py; tests/vectors/certificate.json keeps the two together.
library Certificates {
    bytes32 internal constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 internal constant UPDATE_TYPEHASH = keccak256(
        "CertifiedUpdate(bytes32 adapterId,bytes32 weightsHash,uint8 codec,uint64 sizeBytes,int64 accuracyPpm)"
    );
    bytes32 internal constant COMMITMENT_TYPEHASH = keccak256(
        "CheckpointCommitment(uint64 number,uint32 round,bytes32 parentRecordHash,bytes32 recordHash,bytes32 validatorSetHash,bytes32 nextValidatorSetHash,CertifiedUpdate[] updates)CertifiedUpdate(bytes32 adapterId,bytes32 weightsHash,uint8 codec,uint64 sizeBytes,int64 accuracyPpm)"
    );
    string internal constant NAME = "Citrate AdapterFactory";
    string internal constant VERSION = "1";
    bytes32 internal constant NAME_HASH = keccak256("Citrate AdapterFactory");
    bytes32 internal constant VERSION_HASH = keccak256("1");

    /// @dev OpenZeppelin's EIP712 keeps name and version in immutables, which a predeploy does not have: its
    ///      domain would be empty, silently. So the domain is built from constants at every call.
    function domainSeparator() internal view returns (bytes32) {
        return keccak256(
            abi.encode(
                DOMAIN_TYPEHASH, NAME_HASH, VERSION_HASH, block.chainid, address(this)
            )
        );
    }

    function digest(
        IAdapterFactory.Commitment calldata commitment,
        IAdapterFactory.CertifiedUpdate[] calldata updates,
        bytes32 setHash
    ) internal view returns (bytes32) {
        return _digest(
            commitment.number,
            commitment.round,
            commitment.parentRecordHash,
            commitment.recordHash,
            setHash,
            commitment.nextValidatorSetHash,
            updatesHash(updates)
        );
    }

    function digest(IAdapterFactory.Vote calldata vote) internal view returns (bytes32) {
        return _digest(
            vote.number,
            vote.round,
            vote.parentRecordHash,
            vote.recordHash,
            vote.validatorSetHash,
            vote.nextValidatorSetHash,
            vote.updatesHash
        );
    }

    function updatesHash(IAdapterFactory.CertifiedUpdate[] calldata updates) internal pure returns (bytes32) {
        bytes32[] memory hashes = new bytes32[](updates.length);
        for (uint256 i = 0; i < updates.length; ++i) {
            IAdapterFactory.CertifiedUpdate calldata update = updates[i];
            hashes[i] = keccak256(
                abi.encode(
                    UPDATE_TYPEHASH,
                    update.adapterId,
                    update.weightsHash,
                    update.codec,
                    update.sizeBytes,
                    update.accuracyPpm
                )
            );
        }
        return keccak256(abi.encodePacked(hashes));
    }

    /// @dev Reverts unless the votes are well formed and hold strictly more than 2/3 of the stake.
    ///      Stakes are uint96 and seats at most 256, so no sum can overflow.
    function requireQuorum(IAdapterFactory.Quorum calldata quorum, bytes32 setHash, bytes32 signedDigest)
        internal
        pure
        returns (uint256 signedStake, uint256 totalStake)
    {
        bytes32[] calldata seats = quorum.seats;
        IAdapterFactory.CompactSignature[] calldata signatures = quorum.signatures;
        bytes32 given = keccak256(abi.encode(keccak256(abi.encodePacked(seats)), quorum.nodeKeysHash));
        if (given != setHash) revert IAdapterFactory.ValidatorSetMismatch(given, setHash);

        uint256 signers = quorum.signers;
        uint256 used = 0;
        uint256 i = 0;
        // Storage admits no set of more than 256 seats, so every seat has its bit.
        for (; i < seats.length; ++i) {
            uint256 seat = uint256(seats[i]);
            unchecked {
                totalStake += uint96(seat);
                if ((signers >> i) & 1 == 0) continue;
                if (used == signatures.length) break;
                requireSigner(signedDigest, signatures[used], address(uint160(seat >> 96)));
                signedStake += uint96(seat);
                ++used;
            }
        }
        if (i != seats.length || used != signatures.length || signers >> i != 0) {
            revert IAdapterFactory.SignerCount(_popcount(signers), signatures.length, seats.length);
        }
        if (3 * signedStake <= 2 * totalStake) revert IAdapterFactory.NoQuorum(signedStake, totalStake);
    }

    /// @dev Refuses high s, zero and any other signer, with one error that names who should have signed.
    function requireSigner(
        bytes32 signedDigest,
        IAdapterFactory.CompactSignature calldata signature,
        address account
    ) internal pure {
        (address recovered,,) = ECDSA.tryRecover(signedDigest, signature.r, signature.vs);
        if (recovered != account || recovered == address(0)) {
            revert IAdapterFactory.WrongSigner(account, recovered);
        }
    }

    function _digest(
        uint64 number,
        uint32 round,
        bytes32 parentRecordHash,
        bytes32 recordHash,
        bytes32 setHash,
        bytes32 nextSetHash,
        bytes32 updates
    ) private view returns (bytes32) {
        bytes32 structHash = keccak256(
            abi.encode(
                COMMITMENT_TYPEHASH, number, round, parentRecordHash, recordHash, setHash, nextSetHash, updates
            )
        );
        return MessageHashUtils.toTypedDataHash(domainSeparator(), structHash);
    }

    function _popcount(uint256 word) private pure returns (uint256 count) {
        for (; word != 0; ++count) {
            unchecked {
                word &= word - 1;
            }
        }
    }
}
